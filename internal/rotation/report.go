package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
)

// RetirementReport says of each older key of a key change whether it may be
// retired: a verdict about the key's ARN, over all domains of this broker. It
// is evaluated anew at each call, in one snapshot. Its hash is audited after that,
// and before anybody gets it.
func (e *Engine) RetirementReport(ctx context.Context, caller broker.Caller, d broker.DomainID, id broker.JobID) (Report, error) {
	var report Report
	var view JobView
	err := e.store.View(ctx, func(tx Tx) (err error) {
		if view, err = e.readJob(ctx, tx, d, id); err != nil {
			return err
		}
		if view.SourceEpoch == 0 || view.Kind != KindKeyChange {
			return &broker.Error{Kind: broker.ErrNotFound, Reason: broker.ReasonReportNotFound, Resource: broker.JobName(d, id) + "/retirementReport",
				Detail: "the job replaced no key: there is none to retire"}
		}
		report = Report{Domain: d, Job: id, EvaluateTime: tx.Now()}
		keys, err := tx.DomainKeys(ctx, view.Domain)
		if err != nil {
			return err
		}
		for _, arn := range reportedKeys(keys, view.Job) {
			verdict, err := e.judge(ctx, tx, view.Job, keys, d, arn)
			if err != nil {
				return err
			}
			report.Keys = append(report.Keys, verdict)
		}
		return seal(&report)
	})
	if err != nil {
		return report, err
	}
	return report, e.store.Update(ctx, func(tx Tx) error {
		domain, err := tx.DomainByUID(ctx, view.Domain)
		if err != nil {
			return err
		}
		return tx.Audit(ctx, e.event(caller.Subject, "retirementReports.get", domain, view.Job, broker.AuditDone,
			map[string]string{"sha256": report.SHA256, "safe": strconv.FormatBool(allSafe(report))}))
	})
}

// reportedKeys are the older keys that the job had to do with: its source, and
// those that were not retired before it began.
func reportedKeys(keys []broker.DomainKey, j Job) []broker.KeyARN {
	var arns []broker.KeyARN
	for _, k := range keys {
		if reported(k, j) && !slices.Contains(arns, k.KMSKey) {
			arns = append(arns, k.KMSKey)
		}
	}
	return arns
}

func reported(k broker.DomainKey, j Job) bool {
	old := k.Epoch < j.TargetEpoch && k.State != broker.KeyAbandoned && k.State != broker.KeyPreparing
	late := k.RetireTime.IsZero() || k.RetireTime.After(j.CreateTime)
	return old && (late || k.Epoch == j.SourceEpoch)
}

func (e *Engine) judge(ctx context.Context, tx Tx, j Job, keys []broker.DomainKey, d broker.DomainID, arn broker.KeyARN) (KeyRetirement, error) {
	v := KeyRetirement{Key: arn, GrantsRetired: j.GrantsRetired}
	moved, err := tx.Moved(ctx, j.Ref())
	if err != nil {
		return v, err
	}
	for _, m := range moved {
		if m.SourceKey == arn {
			v.Moved, v.LastMoveTime = append(v.Moved, m), j.LastMoveTime
		}
	}
	if v.ListTime, err = listedWithout(ctx, tx, j, keys, arn); err != nil {
		return v, err
	}
	uses, err := tx.UsesOfKey(ctx, arn, countedRows)
	if err != nil {
		return v, err
	}
	if v.Blockers, err = e.blockers(ctx, tx, j, d, arn, uses); err != nil {
		return v, err
	}
	if v.Inventories, err = e.inventoriesOn(ctx, tx, j, func(k broker.DomainKey) bool { return k.KMSKey == arn && reported(k, j) }); err != nil {
		return v, err
	}
	since := "the job's end"
	if !stands(v.Blockers) {
		// A domain's rows were all gone from the key when it was retired there, but
		// a backup from just before that may have them: of any domain.
		retired := lastRetired(uses)
		v.SafeAfter = latest(j.EndTime, retired)
		since = v.SafeAfter.UTC().Format(time.RFC3339)
		if retention := e.broker.Windows().BackupRetention; retention > 0 && !retired.IsZero() {
			v.SafeAfter = latest(v.SafeAfter, retired.Add(retention))
		}
		if tx.Now().Before(v.SafeAfter) {
			v.Blockers = append(v.Blockers, Blocker{Kind: BlockBackup, Count: 1, Until: v.SafeAfter,
				Message: "a backup from before the key was retired, if it is restored, needs the key"})
		}
		v.Safe = !stands(v.Blockers)
	}
	v.Confirm = []string{
		fmt.Sprintf("CloudTrail shows no successful use of %s by the broker's roles or your services after %s", arn, since),
		"kms:ListGrants on the key shows no grant whose Name begins with kb/ of this deployment",
		"disable the key first and watch for DisabledException before you schedule its deletion",
	}
	return v, nil
}

// listedWithout gives when KMS's list of grants on an older key was read and showed
// none of the domain's under the epochs that the job reports. That was for the job
// which retired the last of them, this one or another. Zero while one is not retired.
func listedWithout(ctx context.Context, tx Tx, j Job, keys []broker.DomainKey, arn broker.KeyARN) (time.Time, error) {
	var retired time.Time
	for _, k := range keys {
		if k.KMSKey != arn || !reported(k, j) {
			continue
		}
		if k.State != broker.KeyRetired {
			return time.Time{}, nil
		}
		retired = latest(retired, k.RetireTime)
	}
	if j.EndTime.Equal(retired) { // a job retires its older epochs as it succeeds
		return j.ListTime, nil
	}
	var after broker.JobID
	for {
		page, err := tx.ListJobs(ctx, j.Domain, after, passPage)
		if err != nil || len(page) == 0 {
			return time.Time{}, err
		}
		for _, other := range page {
			if other.EndTime.Equal(retired) && !other.ListTime.IsZero() {
				return other.ListTime, nil
			}
			after = other.ID
		}
	}
}

// lastRetired gives when the last domain was done with a key, zero if none is.
func lastRetired(uses []KeyUse) (last time.Time) {
	for _, u := range uses {
		last = latest(last, u.RetireTime)
	}
	return last
}

// stands reports whether any of them stands against retiring the key.
func stands(blockers []Blocker) bool {
	return slices.ContainsFunc(blockers, func(b Blocker) bool { return b.Kind != BlockAbandoned })
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// blockers lists what stands against retiring a key, in this domain and others.
func (e *Engine) blockers(ctx context.Context, tx Tx, j Job, d broker.DomainID, arn broker.KeyARN, uses []KeyUse) ([]Blocker, error) {
	var out []Blocker
	keys, err := tx.DomainKeys(ctx, j.Domain)
	if err != nil {
		return nil, err
	}
	if !reportReady(j, keys, arn) {
		out = append(out, Blocker{Kind: BlockJob, Resource: broker.JobName(d, j.ID), Count: 1,
			Message: fmt.Sprintf("the key change is %s in %s; it must succeed first", j.State, j.Phase)})
	}
	for _, u := range uses {
		name := u.DomainID.Name()
		if u.Rows > 0 {
			out = append(out, Blocker{Kind: BlockRows, Resource: name, Count: u.Rows, AtLeast: u.AtLeast, Message: "wrapped data keys are under this key"})
		}
		if u.Leaving && (u.DomainID != d || leftLater(keys, j, arn)) {
			out = append(out, Blocker{Kind: BlockJob, Resource: name, Count: 1, Message: "the domain has another key by now, but its key change has not retired this one"})
		}
		if u.Abandoned > 0 {
			out = append(out, Blocker{Kind: BlockAbandoned, Resource: name, Count: u.Abandoned, Message: "wrapped data keys under this key cannot be read, and were given up: " + givenUp(u)})
		}
		if live := u.Grants - u.Intents; live > 0 {
			out = append(out, Blocker{Kind: BlockGrants, Resource: name, Count: live, Message: "KMS grants on this key are live"})
		}
		if u.Intents > 0 {
			out = append(out, Blocker{Kind: BlockIntents, Resource: name, Count: u.Intents, Message: "KMS has not answered for grants on this key"})
		}
		if u.Current {
			out = append(out, Blocker{Kind: BlockDomain, Resource: name, Count: 1, Message: "it is the domain's present key"})
		}
		if u.Preparing != "" {
			out = append(out, Blocker{Kind: BlockJob, Resource: broker.JobName(u.DomainID, u.Preparing), Count: 1, Message: "a key change to this key is being prepared"})
		}
		if u.ImportSource {
			out = append(out, Blocker{Kind: BlockImportSource, Resource: name, Count: 1, Message: "the domain lists it among its import_source_keys"})
		}
		open, err := e.openInventories(ctx, tx, u, arn)
		if err != nil {
			return nil, err
		}
		if len(open) > 0 {
			out = append(out, Blocker{Kind: BlockSelfInventory, Resource: name, Count: int64(len(open)),
				Message: "services that keep their own wrapped keys have not said that none is left under this key: " + named(open)})
		}
	}
	return out, nil
}

// MostNamed is how many of several things a text for people names; ours.
const MostNamed = 5

// firstNames lists the first names of count things.
func firstNames(names []string, count int64) string {
	if more := count - int64(len(names)); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// givenUp tells which of a domain's rows were given up.
func givenUp(u KeyUse) string {
	var names []string
	for _, id := range u.FirstAbandoned {
		names = append(names, broker.DataKeyName(u.DomainID, id))
	}
	return firstNames(names, u.Abandoned)
}

// leftLater says whether the job's domain came back to a key by the job or after it,
// has left it again, and is not done with it.
func leftLater(keys []broker.DomainKey, j Job, arn broker.KeyARN) bool {
	return slices.ContainsFunc(keys, func(k broker.DomainKey) bool {
		return k.KMSKey == arn && k.Epoch >= j.TargetEpoch && (k.State == broker.KeySuperseded || k.State == broker.KeyClosed)
	})
}

// openInventories gives the services of one domain whose word about the key is
// asked for and not given, or was taken back. Whoever deletes a domain answers for
// its services.
func (e *Engine) openInventories(ctx context.Context, tx Tx, use KeyUse, arn broker.KeyARN) ([]SelfInventory, error) {
	if len(use.Epochs) == 0 && use.RetireTime.IsZero() {
		return nil, nil
	}
	d, err := tx.DomainByUID(ctx, use.DomainUID)
	if err != nil || d.State == broker.DomainDeleted {
		return nil, err
	}
	keys, err := tx.DomainKeys(ctx, use.DomainUID)
	if err != nil {
		return nil, err
	}
	older := slices.DeleteFunc(replaced(keys, d.Epoch), func(k broker.DomainKey) bool { return k.KMSKey != arn })
	all, err := e.selfInventories(ctx, tx, d, keys, older)
	return unsettled(all), err
}

// seal renders the report as canonical JSON and hashes it.
func seal(r *Report) error {
	raw, err := canonical(*r)
	if err != nil {
		return fmt.Errorf("render the report: %w", err)
	}
	sum := sha256.Sum256(raw)
	r.Canonical, r.SHA256 = string(raw), hex.EncodeToString(sum[:])
	return nil
}

func allSafe(r Report) bool {
	for _, k := range r.Keys {
		if !k.Safe {
			return false
		}
	}
	return true
}
