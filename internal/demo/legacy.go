package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"golang.org/x/sync/errgroup"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const (
	legacyBlobs  = 1000
	legacyPrefix = "legacy-"
	importBatch  = 250
)

// A legacyBlob is a data key as the legacy service kept it. SHA256 is of the
// data key itself, in hex, to recognise it by after the import.
type legacyBlob struct {
	Record string `json:"record"`
	Blob   []byte `json:"blob"`
	SHA256 string `json:"sha256"`
}

func (b legacyBlob) id() string { return legacyPrefix + b.Record }

func (b legacyBlob) context() map[string]string {
	return map[string]string{"service": "legacy", "record": b.Record}
}

// importLegacy hands the broker data keys that somebody else wrapped, under
// another key and without the domain's pair. For the length of the import, and
// no longer, the customer lets the broker's worker re-encrypt away from that key.
func (r *run) importLegacy(ctx context.Context) error {
	if r.st.Own.given() {
		return nil
	}
	blobs, err := r.legacyBlobs(ctx)
	if err != nil {
		return fmt.Errorf("the legacy service's data keys: %w", err)
	}
	if err := r.allowImport(ctx); err != nil {
		return fmt.Errorf("the customer allows the import: %w", err)
	}
	bar := r.story.bar("import", len(blobs))
	for from := 0; from < len(blobs); from += importBatch {
		if err := r.importBatch(ctx, blobs[from:min(from+importBatch, len(blobs))]); err != nil {
			return err
		}
		bar.add(min(importBatch, len(blobs)-from))
		r.act()
	}
	bar.end()
	if err := r.putLegacyPolicy(ctx, r.st.LegacyPolicy); err != nil {
		return fmt.Errorf("the customer ends the import: %w", err)
	}
	r.story.say("legacy", "handed over %d data keys of its own; each went through KMS ReEncrypt\ninto the domain's key and context", len(blobs))
	return nil
}

// legacyBlobs gives what the legacy service wrapped long ago: the same in every
// start.
func (r *run) legacyBlobs(ctx context.Context) ([]legacyBlob, error) {
	if r.st.Own.given() {
		return nil, nil
	}
	path := filepath.Join(r.cfg.Data, legacyFile)
	text, err := os.ReadFile(path)
	if err == nil {
		var blobs []legacyBlob
		return blobs, json.Unmarshal(text, &blobs)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	blobs := make([]legacyBlob, legacyBlobs)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for i := range blobs {
		group.Go(func() error {
			b := legacyBlob{Record: strconv.Itoa(i + 1)}
			out, err := r.legacy.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
				KeyId: &r.st.LegacyKey, KeySpec: types.DataKeySpecAes256, EncryptionContext: b.context(),
			})
			if err != nil {
				return err
			}
			b.Blob, b.SHA256 = out.CiphertextBlob, digest(out.Plaintext)
			clear(out.Plaintext)
			blobs[i] = b
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if text, err = json.Marshal(blobs); err != nil {
		return nil, err
	}
	return blobs, writeFile(path, text)
}

// allowImport adds the broker's statement to the legacy key's own policy.
func (r *run) allowImport(ctx context.Context) error {
	if r.st.LegacyPolicy == "" {
		present, err := r.customer.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &r.st.LegacyKey})
		if err != nil {
			return err
		}
		r.st.LegacyPolicy = *present.Policy
		if err := r.save(); err != nil {
			return err
		}
	}
	policy, err := r.domains.GenerateKeyPolicy(ctx, &keybrokerv1.GenerateKeyPolicyRequest{
		Name:                domainName,
		Base:                &keybrokerv1.GenerateKeyPolicyRequest_ExistingPolicyDocument{ExistingPolicyDocument: r.st.LegacyPolicy},
		Profile:             keybrokerv1.GenerateKeyPolicyRequest_PROFILE_IMPORT_SOURCE,
		ImportSourceContext: map[string]string{"service": "legacy"},
	})
	if err != nil {
		return err
	}
	return r.putLegacyPolicy(ctx, policy.GetPolicyDocument())
}

func (r *run) putLegacyPolicy(ctx context.Context, document string) error {
	_, err := r.customer.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &r.st.LegacyKey, Policy: &document})
	return err
}

func (r *run) importBatch(ctx context.Context, blobs []legacyBlob) error {
	items := make([]*keybrokerv1.ImportDataKeysRequest_Item, len(blobs))
	for i, b := range blobs {
		items[i] = &keybrokerv1.ImportDataKeysRequest_Item{
			DataKeyId:               b.id(),
			CiphertextBlob:          b.Blob,
			SourceKmsKey:            r.st.LegacyKey,
			SourceEncryptionContext: b.context(),
		}
	}
	answer, err := r.dataKeys.ImportDataKeys(ctx, &keybrokerv1.ImportDataKeysRequest{
		Parent: domainName, Items: items, RequestId: "demo-import-" + blobs[0].Record,
	})
	if err != nil {
		return err
	}
	for i, result := range answer.GetResults() {
		if refusal := result.GetError(); refusal != nil && refusal.GetReason() != "DATA_KEY_ALREADY_EXISTS" {
			return fmt.Errorf("record %s was not imported: %s: %s", blobs[i].Record, refusal.GetReason(), refusal.GetMessage())
		}
	}
	return nil
}
