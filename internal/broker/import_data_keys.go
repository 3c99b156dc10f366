package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// ImportDataKeys is an ImportDataKeys call.
type ImportDataKeys struct {
	Request Request
	Domain  DomainID
	Items   []ImportItem
	// AllowUnproven lets items be kept as they are, without a KMS call, where
	// nothing but the proof is lost by it; see unproven.
	AllowUnproven bool
}

// ImportItem is one existing blob. SourceContext is the exact context that it
// was made with; what is stored is that less the domain's reserved pair. With an
// Etag, it takes the place of the data key that has this id and this etag.
type ImportItem struct {
	ID            DataKeyID
	Etag          string // "" makes a new data key
	Ciphertext    Secret
	SourceKey     KeyARN
	SourceContext Context
	KeySpec       string
}

// ImportResult is the outcome of one item: a stored key, or why not.
type ImportResult struct {
	Key DataKeyView // without ciphertext
	Err error
}

// Limits of an import.
const (
	// MaxImportItems bounds one call, so that its answer fits a message.
	MaxImportItems = 500
	// maxCiphertext is KMS's limit of a CiphertextBlob (KMS API Reference, ReEncrypt).
	maxCiphertext = 6144
	// importConcurrency is how many of a call's blobs are at KMS at a time.
	importConcurrency = 16
)

// ImportDataKeys takes blobs that exist already. Each goes through ReEncrypt,
// from the key and context it was made with to the domain's present key and
// reserved pair: one call proves key, context and integrity, and moves what a
// service made under an older key. Items are refused one by one; if KMS fails
// to answer for any of them, nothing at all is stored.
//
// A caller may allow that blobs which need no change are kept unproven, without
// the call.
//
// An item with an etag replaces a data key: that is the owner's way to mend one
// which KMS cannot read. Nobody can tell whether the blob that is put in its
// place holds the same key.
func (b *Broker) ImportDataKeys(ctx context.Context, caller Caller, in ImportDataKeys) ([]ImportResult, error) {
	if err := in.validate(); err != nil {
		return nil, err
	}
	for range storeAttempts {
		d, done, err := b.openForStore(ctx, caller, in.Request, in.Domain)
		if err != nil {
			return nil, err
		}
		if done != "" {
			return b.importedBefore(ctx, in, done)
		}
		moved, err := b.moveItems(ctx, d, in)
		b.cfg.At("import.reencrypted")
		if err != nil {
			return nil, err
		}
		results, done, err := b.storeImported(ctx, caller, in, d, moved)
		if done != "" {
			return b.importedBefore(ctx, in, done)
		}
		if !errors.Is(err, errEpochMoved) {
			return results, err
		}
	}
	return nil, movedTooOften(in.Domain)
}

func (in *ImportDataKeys) validate() error {
	if len(in.Items) == 0 || len(in.Items) > MaxImportItems {
		return invalidField(ReasonFieldInvalid, "items", "must be 1 to %d", MaxImportItems)
	}
	in.Items = slices.Clone(in.Items)
	seen := make(map[DataKeyID]bool, len(in.Items))
	for i := range in.Items {
		item := &in.Items[i]
		field := fmt.Sprintf("items[%d]", i)
		if item.KeySpec == "" {
			item.KeySpec = DefaultKeySpec
		}
		switch {
		case !dataKeyIDPattern.MatchString(string(item.ID)):
			return invalidField(ReasonFieldInvalid, field+".data_key_id", "must match %s", dataKeyIDPattern)
		case seen[item.ID]:
			return invalidField(ReasonImportDuplicate, field+".data_key_id", "stands twice in the request")
		case len(item.Ciphertext) == 0 || len(item.Ciphertext) > maxCiphertext:
			return invalidField(ReasonFieldInvalid, field+".ciphertext_blob", "must have 1 to %d bytes", maxCiphertext)
		case !keySpecs[item.KeySpec]:
			return invalidField(ReasonFieldInvalid, field+".key_spec", "must be AES_256 or AES_128")
		}
		if p, ok := parseKeyARN(string(item.SourceKey)); !ok || p.Alias {
			return invalidField(ReasonKeyARNInvalid, field+".source_kms_key", "must be a full KMS key ARN")
		}
		seen[item.ID] = true
	}
	return nil
}

// A movedItem is an item in the form that is stored, or why it is not.
type movedItem struct {
	row      DataKey
	source   KeyARN // the key it was under; "" if it was refused before KMS was asked
	own      bool   // it was made with the domain's reserved pair
	unproven bool   // KMS was not asked
	err      error
}

// moveItems moves every item to the domain's key. Its error is the one that
// stops the whole call.
func (b *Broker) moveItems(ctx context.Context, d Domain, in ImportDataKeys) ([]movedItem, error) {
	_, keys, err := b.GetDomain(ctx, System, d.ID)
	if err != nil {
		return nil, err
	}
	spare := in.AllowUnproven && onlyKey(d, keys)
	moved := make([]movedItem, len(in.Items))
	limit := make(chan struct{}, importConcurrency)
	var wg sync.WaitGroup
	for i, item := range in.Items {
		m := &moved[i]
		stored, own, err := checkImportItem(fmt.Sprintf("items[%d]", i), item, d, keys, b.reserved)
		m.row, m.err = DataKey{Domain: d.UID, ID: item.ID, UID: DataKeyUID(b.cfg.NewID()), Ciphertext: item.Ciphertext,
			Context: stored, KeySpec: item.KeySpec, Epoch: d.Epoch, Version: 1}, err
		if err != nil {
			continue
		}
		m.source, m.own = item.SourceKey, own
		if m.unproven = spare && own && item.Etag == ""; m.unproven {
			continue
		}
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			m.err = b.reencryptItem(ctx, d, item, &m.row)
		})
	}
	wg.Wait()
	for _, m := range moved {
		if ClassOf(m.err).Transient() || ctx.Err() != nil {
			return nil, RefusedByKMS(errors.Join(m.err, ctx.Err()), d.ID.Name())
		}
	}
	return moved, nil
}

// onlyKey is the one case in which a blob with the domain's own pair may be kept
// unproven: the domain can be used, and never had, nor is getting, another key
// than its present one. Then its blobs can be under no other, a row stands for no
// key that might be given up before a key change has proved the row, and that
// change proves every row.
func onlyKey(d Domain, keys []DomainKey) bool {
	return d.State == DomainActive && len(keys) == 1 && keys[0].State == KeyCurrent
}

// checkImportItem checks what can be known of an item without KMS, and gives the
// context to store; own reports whether the blob has the domain's own pair.
func checkImportItem(field string, item ImportItem, d Domain, keys []DomainKey, reserved func(string) bool) (stored Context, own bool, err error) {
	if stored, own, err = importContext(field+".source_encryption_context", item.SourceContext, d.Reserved, reserved); err != nil {
		return nil, false, err
	}
	return stored, own, checkImportSource(field, d, keys, item.SourceKey, own)
}

// reencryptItem gives an item to KMS, and puts what comes back into its row.
func (b *Broker) reencryptItem(ctx context.Context, d Domain, item ImportItem, row *DataKey) error {
	out, err := b.worker.ReEncrypt(ctx, ReEncrypt{
		Ciphertext: item.Ciphertext, SourceKey: item.SourceKey, SourceContext: item.SourceContext,
		DestinationKey: d.KMSKey, DestinationContext: row.Context.With(d.Reserved)})
	if err != nil {
		return err
	}
	if out.DestinationKey != d.KMSKey {
		return fmt.Errorf("KMS answered with another key than %s", d.KMSKey)
	}
	row.Ciphertext, row.KeyMaterialID, row.KMSRequestID = out.Ciphertext, out.DestinationKeyMaterialID, out.RequestID
	return nil
}

// checkImportSource: a blob with the domain's own pair comes from one of the
// domain's open keys, by the broker's grants; one without it from a key that an
// operator listed, by a statement of that key's policy.
func checkImportSource(field string, d Domain, keys []DomainKey, source KeyARN, own bool) error {
	if own {
		for _, k := range keys {
			if k.KMSKey == source && (k.State == KeyCurrent || k.State == KeySuperseded) {
				return nil
			}
		}
		return invalidField(ReasonImportSourceNotAllowed, field+".source_kms_key", "must be one of the domain's keys that is not retired, for a blob made with the domain's reserved pair")
	}
	for _, s := range d.ImportSources {
		if KeyARN(s) == source {
			return nil
		}
	}
	return invalidField(ReasonImportSourceNotAllowed, field+".source_kms_key", "must be one of the domain's import_source_keys, for a blob made without the domain's reserved pair")
}

// reserved reports whether a folded context key belongs to the broker in any
// domain of this deployment.
func (b *Broker) reserved(foldedKey string) bool {
	return strings.HasPrefix(foldedKey, reservedPrefix) || foldedKey == fold(b.cfg.ReservedKey)
}

// storeImported stores what KMS moved, if the domain's key is still the one it
// was moved to. If the same request was stored meanwhile, done is its record.
func (b *Broker) storeImported(ctx context.Context, caller Caller, in ImportDataKeys, opened Domain, moved []movedItem) (results []ImportResult, done string, err error) {
	err = b.store.Update(ctx, func(tx Tx) error {
		results = make([]ImportResult, len(moved))
		if err := tx.LockDomain(ctx, opened.UID, Shared); err != nil {
			return err
		}
		d, err := tx.DomainByUID(ctx, opened.UID)
		if err != nil {
			return err
		}
		rec, err := begin(ctx, tx, caller, in.Request)
		if err != nil {
			return err
		}
		if rec != nil && rec.Done {
			done = rec.Resource
			return nil
		}
		if err := checkStoreEpoch(d, opened.Epoch); err != nil {
			return err
		}
		if err := checkUnproven(ctx, tx, d, moved); err != nil {
			return err
		}
		rows, refused, err := storeItems(ctx, tx, caller, in, d, moved)
		if err != nil {
			return err
		}
		for i, refusal := range refused {
			if results[i].Err = refusal; refusal == nil {
				results[i].Key = importedView(d, rows[i])
			}
		}
		event, proven := importEvent(caller, in, d, moved, rows, refused)
		if err := tx.Audit(ctx, event); err != nil {
			return err
		}
		if proven {
			if err := markAccessible(ctx, tx, d); err != nil {
				return err
			}
		}
		return finish(ctx, tx, caller, in.Request, importRecord(d.ID, results))
	})
	return results, done, err
}

// checkUnproven is the fence of items that KMS was not asked about: the domain,
// read under its lock, still has but the one key. Else they go to KMS.
func checkUnproven(ctx context.Context, tx Tx, d Domain, moved []movedItem) error {
	if !slices.ContainsFunc(moved, func(m movedItem) bool { return m.unproven && m.err == nil }) {
		return nil
	}
	keys, err := tx.DomainKeys(ctx, d.UID)
	if err == nil && !onlyKey(d, keys) {
		err = errEpochMoved
	}
	return err
}

// storeItems stores items: the new ones together, those with an etag each in
// place of the row that has it. For each it gives the row, or why it is refused;
// an error ends the whole call.
func storeItems(ctx context.Context, tx Tx, caller Caller, in ImportDataKeys, d Domain, moved []movedItem) (rows []DataKey, refused []error, err error) {
	rows, refused = make([]DataKey, len(moved)), make([]error, len(moved))
	fresh, places := make([]DataKey, 0, len(moved)), make([]int, 0, len(moved))
	for i, m := range moved {
		rows[i] = m.row
		rows[i].CreateTime, rows[i].UpdateTime = tx.Now(), tx.Now()
		switch etag := in.Items[i].Etag; {
		case m.err != nil:
			refused[i] = RefusedByKMS(m.err, DataKeyName(d.ID, m.row.ID))
		case etag == "":
			fresh, places = append(fresh, rows[i]), append(places, i)
		default:
			if rows[i], refused[i], err = replaceItem(ctx, tx, caller, in.Request, d, etag, rows[i]); err != nil {
				return nil, nil, err
			}
		}
	}
	there, err := tx.InsertDataKeys(ctx, fresh)
	for n, err := range there {
		refused[places[n]] = alreadyExists(err, ReasonDataKeyAlreadyExists, DataKeyName(d.ID, fresh[n].ID))
	}
	return rows, refused, err
}

// replaceItem stores one item that KMS moved in place of the row that has its
// etag.
func replaceItem(ctx context.Context, tx Tx, caller Caller, r Request, d Domain, etag string, row DataKey) (stored DataKey, refused, err error) {
	name := DataKeyName(d.ID, row.ID)
	old, err := tx.DataKey(ctx, d.UID, row.ID)
	if errors.Is(err, ErrNotFound) {
		return DataKey{}, notFound(err, ReasonDataKeyNotFound, name), nil
	}
	if err != nil {
		return DataKey{}, nil, err
	}
	if etag != old.Etag() {
		return DataKey{}, etagMismatch(name), nil
	}
	row.UID, row.Version, row.CreateTime = old.UID, old.Version, old.CreateTime
	switch err := tx.ReplaceDataKey(ctx, row, old.Epoch); {
	case errors.Is(err, ErrConflict):
		return DataKey{}, etagMismatch(name), nil
	case errors.Is(err, ErrNotFound): // deleted since it was read
		return DataKey{}, notFound(err, ReasonDataKeyNotFound, name), nil
	case err != nil:
		return DataKey{}, nil, err
	}
	row.Version++
	return row, nil, tx.Audit(ctx, AuditEvent{Caller: caller.Subject, Action: "dataKeys.replace", Domain: d.UID,
		Resource: name, Outcome: AuditDone, RequestID: r.ID, KMSRequestID: row.KMSRequestID})
}

// importEvent is the one audit event of a call, with the Merkle root of the rows
// that it stored, and importSources. proven says that KMS has read one of them.
func importEvent(caller Caller, in ImportDataKeys, d Domain, moved []movedItem, rows []DataKey, refused []error) (event AuditEvent, proven bool) {
	var leaves [][sha256.Size]byte
	unproven := 0
	for i, row := range rows {
		switch {
		case refused[i] != nil:
			continue
		case moved[i].unproven:
			unproven++
		default:
			proven = true
		}
		leaves = append(leaves, LeafHash(row))
	}
	detail := map[string]string{"stored": strconv.Itoa(len(leaves)), "refused": strconv.Itoa(len(rows) - len(leaves))}
	if unproven > 0 {
		detail["unproven"] = strconv.Itoa(unproven)
	}
	if sources, foreign := importSources(moved); len(sources) > 0 {
		detail["source_keys"], detail["without_reserved_pair"] = strings.Join(sources, " "), strconv.Itoa(foreign)
	}
	if len(leaves) > 0 {
		root := MerkleRoot(leaves)
		detail["merkle_root"], detail["kms_key"] = hex.EncodeToString(root[:]), string(d.KMSKey)
	}
	return AuditEvent{Caller: caller.Subject, Action: "dataKeys.import", Domain: d.UID, Resource: d.ID.Name(),
		Outcome: AuditDone, RequestID: in.Request.ID, Detail: detail}, proven
}

// importSources gives the keys that items came from, and how many of the items went
// to KMS without the reserved pair on their source side; what KMS refused counts.
func importSources(moved []movedItem) (keys []string, foreign int) {
	for _, m := range moved {
		if m.source == "" {
			continue
		}
		keys = append(keys, string(m.source))
		if !m.own {
			foreign++
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), foreign
}

func importedView(d Domain, row DataKey) DataKeyView {
	row.Ciphertext = nil
	return DataKeyView{DataKey: row, DomainID: d.ID, KMSKey: d.KMSKey, EncryptionContext: row.Context.With(d.Reserved)}
}

// importRecord is what a request record keeps of an import: the domain and, by
// index, the reasons of the items that were refused.
func importRecord(id DomainID, results []ImportResult) string {
	var b strings.Builder
	b.WriteString(id.Name())
	for i, r := range results {
		if r.Err != nil {
			fmt.Fprintf(&b, " %d=%s", i, ReasonOf(r.Err))
		}
	}
	return b.String()
}

// importKind gives the kind that an item's refusal had at first.
func importKind(r Reason) error {
	switch r {
	case ReasonDataKeyAlreadyExists, ReasonDataKeyIDDeleted:
		return ErrAlreadyExists
	case ReasonDataKeyNotFound:
		return ErrNotFound
	case ReasonEtagMismatch:
		return ErrConflict
	case ReasonKeyAccessDenied, ReasonKeyDisabled, ReasonKeyStateInvalid, ReasonKeyNotFound:
		return ErrPrecondition
	case ReasonGrantLimitExceeded:
		return ErrExhausted
	}
	return ErrInvalid
}

// importedBefore answers a repeat: the rows as they are now, and the refusals
// by their reasons.
func (b *Broker) importedBefore(ctx context.Context, in ImportDataKeys, record string) ([]ImportResult, error) {
	refused := map[int]Reason{}
	for _, f := range strings.Fields(record)[1:] {
		index, reason, _ := strings.Cut(f, "=")
		i, err := strconv.Atoi(index)
		if err != nil {
			return nil, fmt.Errorf("request record of an import: %w", err)
		}
		refused[i] = Reason(reason)
	}
	results := make([]ImportResult, len(in.Items))
	err := b.store.View(ctx, func(tx Tx) error {
		d, err := tx.Domain(ctx, in.Domain)
		if err != nil {
			return domainNotFound(err, in.Domain)
		}
		for i, item := range in.Items {
			if reason, ok := refused[i]; ok {
				results[i].Err = &Error{Kind: importKind(reason), Reason: reason, Resource: DataKeyName(d.ID, item.ID),
					Detail: "was refused when the request was first made"}
				continue
			}
			results[i].Key, results[i].Err = readDataKey(ctx, tx, d, item.ID)
			results[i].Key.Ciphertext = nil
		}
		return nil
	})
	return results, err
}
