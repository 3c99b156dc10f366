// Package bugs_test shows that the suites can fail: each seeded bug must be
// caught by the suite that is meant to catch it, and by the violation that it
// is. Bugs that need code of their own stand behind a build tag; a rule that is
// only left out or turned round is seeded by a build overlay, so that the
// product's source holds no trace of it.
package bugs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A seeded bug: what it is, how it gets in, where it is caught, and what the
// failure must say.
type seeded struct {
	name, what string
	edit       *edit // nil: name is a build tag
	suite      string
	run        string
	says       string
}

// An edit replaces text that stands exactly once in a file.
type edit struct {
	file, old, new string
}

const model, storm = "TestKeyChangeModel", "TestKeyChangeInAStorm"

func bugs() []seeded {
	return []seeded{
		{name: "bug_no_cas", what: "a move does not compare uid, version and epoch", suite: "./internal/sqlstore", run: "TestSQLite/MoveDataKeys", says: "MoveDataKeys"},
		{name: "bug_no_store_check", what: "a store does not check the domain's key", suite: "./test/model", run: model, says: "I1: data key|I3: job|I6: |job is still|did not end well|job failed|job blocked|service cannot"},
		{name: "bug_no_drain", what: "nobody waits for what services still hold", suite: "./test/model", run: model, says: "import of .* refused|service cannot"},
		{name: "bug_no_reserved_pair", what: "a ReEncrypt lacks the reserved pair", suite: "./test/model", run: model, says: "I4: ReEncrypt|job is still|did not end well|job failed|job blocked|service cannot"},
		{name: "bug_early_report", what: "a report does not wait for the final pass", suite: "./test/scenarios", run: "TestReportIsNeverEarly", says: "I6: the report of a job"},
		{name: "bug_expiry_forgets_epochs", what: "an expiry retires only what is on the present key", suite: "./internal/broker", run: "TestSweepExpires", says: "grants are left on"},
		{name: "bug_orphan_ignored", what: "the orphan sweep steps over Names that it does not know", suite: "./internal/broker", run: "TestOrphansAreRetired", says: "the orphan is still there"},
		{name: "bug_recreate_revoked", what: "what the customer took away is made again unasked", suite: "./internal/broker", run: "TestTakenAwayStaysAway", says: "was made again unasked"},

		{name: "no_fence", what: "a shard's commit ignores its lease", suite: "./internal/sqlstore", run: "TestSQLite", says: "FAIL: TestSQLite/.*([Ff]ence|Shard|[Ll]ease)",
			edit: &edit{"internal/sqlstore/shards.go", "where domain_uid = $1 and job_id = $2 and shard_index = $3 and lease_seq = $4`,\n\t\ts.Domain, s.Job, s.Index, s.Lease.Seq,\n\t\ts.Cursor", "where domain_uid = $1 and job_id = $2 and shard_index = $3 and $4 = $4`,\n\t\ts.Domain, s.Job, s.Index, s.Lease.Seq,\n\t\ts.Cursor"}},
		{name: "no_job_fence", what: "a job's update ignores its lease and version", suite: "./internal/sqlstore", run: "TestSQLite", says: "FAIL: TestSQLite/",
			edit: &edit{"internal/sqlstore/jobs.go", "where domain_uid = $1 and job_id = $2 and version = $3 and lease_seq = $4`", "where domain_uid = $1 and job_id = $2 and $3 = $3 and $4 = $4`"}},
		{name: "id_reused", what: "a deleted id may be given out again", suite: "./internal/sqlstore", run: "TestSQLite", says: "FAIL: TestSQLite/",
			edit: &edit{"internal/sqlstore/data_keys.go", "if err != nil || !deleted {", "if err != nil || !deleted || true {"}},
		{name: "domain_not_locked", what: "PostgreSQL's domain lock holds nobody off", suite: "./internal/sqlstore", run: "TestPostgres/LockDomain", says: "rows under the old epoch|read epoch",
			edit: &edit{"internal/sqlstore/postgres.go", "_, err := s.exec(ctx, query, lockKey(name))\n\treturn err", "_, _ = query, lockKey\n\treturn nil"}},
		{name: "snapshot_before_lock", what: "a writer on PostgreSQL sees the domain as it was before it waited", suite: "./internal/sqlstore", run: "TestPostgres/LockDomain", says: "rows under the old epoch|read epoch",
			edit: &edit{"internal/sqlstore/postgres.go", "begin isolation level read committed read write", "begin isolation level repeatable read read write"}},
		{name: "nothing_held", what: "on PostgreSQL a KMS grant is changed between reading and writing it back", suite: "./internal/sqlstore", run: "TestPostgres/RaceForGrant", says: "FAIL: TestPostgres/RaceForGrant",
			edit: &edit{"internal/sqlstore/postgres.go", "return \"\\n\\t\\tfor no key update\"\n", "return \"\"\n"}},
		{name: "request_not_held", what: "two calls of one request_id at once both have an effect", suite: "./internal/sqlstore", run: "TestPostgres/RaceForRequest", says: "racers won, want 1",
			edit: &edit{"internal/sqlstore/requests.go", "\tif !t.readOnly {", "\tif false {"}},
		{name: "lost_commit_repeated", what: "a commit without an answer is taken for one that was never sent", suite: "./internal/sqlstore", run: "TestUnansweredCommit", says: "the function was run 2 times|is in the store already",
			edit: &edit{"internal/sqlstore/postgres_session.go", "return &unansweredCommitError{err}", "return &lostConnectionError{err}"}},
		{name: "no_read_delay", what: "the old grants go while readers hold old blobs", suite: "./test/model", run: model, says: "service cannot unwrap",
			edit: &edit{"internal/rotation/retire.go", "!moved.IsZero() && tx.Now().Before(until) {", "false && tx.Now().Before(until) {"}},
		{name: "attested_too_early", what: "a service's word counts before the drain", suite: "./test/scenarios", run: "TestAttestationBeforeTheDrain", says: "FAIL: TestAttestationBeforeTheDrain",
			edit: &edit{"internal/rotation/self_inventory.go", "return s.Kind == Overridden || !s.BeginTime.Before(until)", "return true"}},
		{name: "ended_self_grant_forgotten", what: "a service whose grant has ended is not asked", suite: "./test/scenarios", run: "TestEndedSelfGrantIsAskedAbout", says: "never came to look as wanted|FAIL: TestEndedSelfGrantIsAskedAbout",
			edit: &edit{"internal/sqlstore/grants.go", "where domain_uid = $1 and inventory = 'SELF'", "where domain_uid = $1 and inventory = 'SELF' and state in ('CREATING', 'ACTIVE')"}},
		{name: "attestation_stands", what: "a word stands although its service moves another key", suite: "./test/scenarios", run: "TestAttestationIsTakenBack", says: "never came to look as wanted",
			edit: &edit{"internal/rotation/pass_items.go", "if err := takeBackAttestations(ctx, tx, caller, pass, d); err != nil {\n\t\t\treturn err\n\t\t}", "_ = takeBackAttestations"}},
		{name: "unwrap_retired_first", what: "unwrap grants are retired with the wrap grants", suite: "./test/model", run: model, says: "refused|I1: |job is still|did not end well|job failed|job blocked|service cannot",
			edit: &edit{"internal/rotation/reencrypt.go", "return k.Kind == broker.Wrap && k.Epoch < j.TargetEpoch", "return k.Epoch < j.TargetEpoch"}},
		{name: "epoch_given_back", what: "an epoch is used again after a change was taken back", suite: "./test/model", run: model, says: "epoch already|step:|step of|step amid|job is still|did not end well|job failed|job blocked|service cannot",
			edit: &edit{"internal/rotation/change_key.go", "TargetEpoch: d.LastEpoch + 1,", "TargetEpoch: d.Epoch + 1,"}},
		{name: "poison_forgotten", what: "a job succeeds over rows that KMS cannot read", suite: "./test/scenarios", run: "TestPoisonRow", says: "job ended SUCCEEDED",
			edit: &edit{"internal/rotation/verify.go", "\tif pass.poison > 0 {", "\tif false {"}},
		{name: "relabel_any", what: "rows get the new epoch without a call", suite: "./test/model", run: model, says: "I1: data key|cannot be read under the new key|job is still|did not end well|job failed|job blocked|service cannot",
			edit: &edit{"internal/rotation/reencrypt.go", "if w.job.Kind == KindKeyChange && key.KMSKey == w.job.TargetKey {", "if w.job.Kind == KindKeyChange && key.Epoch < w.job.TargetEpoch {"}},
		{name: "undo_leaves_grants", what: "a change taken back leaves its grants at KMS", suite: "./test/model", run: model, says: "I7: job|I3: job|I7: KMS",
			edit: &edit{"internal/rotation/take_back.go", "if _, err := e.broker.RetireEpochs(ctx, j.Domain, ours); err != nil {\n\t\treturn j, err\n\t}", "_ = ours"}},
		{name: "etag_ignored", what: "a stale etag changes a data key", suite: "./test/model", run: storm, says: "I13",
			edit: &edit{"internal/broker/delete_data_key.go", "if etag != \"\" && etag != k.Etag() {", "if false {"}},
		{name: "import_etag_ignored", what: "an import with a stale etag replaces a data key", suite: "./internal/broker", run: "TestImportReplaces", says: "want .ETAG_MISMATCH",
			edit: &edit{"internal/broker/import_data_keys.go", "if etag != old.Etag() {", "if false {"}},
		{name: "no_replace_cas", what: "a replacement does not compare uid, version and epoch", suite: "./internal/sqlstore", run: "TestSQLite", says: "FAIL: TestSQLite/ReplaceDataKey",
			edit: &edit{"internal/sqlstore/data_keys.go", "and data_key_uid = $3 and version = $4 and key_epoch = $5`", "and $3 = $3 and $4 = $4 and $5 = $5`"}},
		{name: "request_forgotten", what: "a repeated request_id has a second effect", suite: "./test/model", run: storm, says: "I8: |call failed",
			edit: &edit{"internal/broker/create_data_key.go", "return finish(ctx, tx, caller, r, name)", "return nil"}},
		{name: "any_signature", what: "the embedded KMS believes an access key id", suite: "./internal/localkms", run: "TestSignature|TestPublishedSignatures", says: "FAIL: TestSignature/another_body",
			edit: &edit{"internal/localkms/sigv4.go", "return hmac.Equal(v.appendSignature(want[:0], s, secret, hr, body, signedAt), []byte(s.hex))", "return len(v.appendSignature(want[:0], s, secret, hr, body, signedAt)) == len(s.hex)"}},
		{name: "endless_session", what: "the embedded KMS takes temporary credentials after their end", suite: "./internal/localkms", run: "TestSTSErrors", says: "want .*ExpiredToken",
			edit: &edit{"internal/localkms/identity.go", "if !r.now.Before(found.identity.session.expires) {", "if false {"}},
		{name: "deny_loses", what: "an explicit deny of the embedded KMS does not win", suite: "./internal/localkms", run: "TestReference", says: "the code says true, the rules false",
			edit: &edit{"internal/localkms/evaluate.go", "if v, denied := o.denial(resource.kind); denied { // P1", "if v, denied := o.denial(resource.kind); denied && false {"}},
		{name: "half_is_enough", what: "across accounts the key policy alone allows", suite: "./internal/localkms", run: "TestReference", says: "the code says true, the rules false",
			edit: &edit{"internal/localkms/evaluate.go", "case home && named >= namedRole: // P4 to P7", "case named >= namedRole:"}},
		{name: "any_context", what: "grants of the embedded KMS do not look at the context", suite: "./internal/localkms", run: "TestReference", says: "the code says true, the rules false",
			edit: &edit{"internal/localkms/authorize.go", "return !a.takesContext || g.Constraint.admits(a.context)", "return true"}},
		{name: "superseder_keeps_rows", what: "a superseded job goes on moving rows to its own key", suite: "./test/model", run: model, says: "FAIL",
			edit: &edit{"internal/rotation/switch.go", "if err := e.supersede(ctx, tx, d, j); err != nil {\n\t\t\treturn err\n\t\t}", "_ = e.supersede"}},
	}
}

// patience is for a suite that runs as often as the check needs; a bug that is
// there is found in seconds. The test binary ends itself a little earlier, since
// to end go test leaves it running.
const patience = 3 * time.Minute

func TestSeededBugsAreCaught(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	caught := 0
	for _, b := range bugs() {
		t.Run(b.name, func(t *testing.T) {
			out, err := runWith(t, root, b)
			switch {
			case strings.Contains(out, "NOT TESTED ON POSTGRESQL") && os.Getenv("CI") != "true":
				t.Skip("!!! NOT TESTED: PostgreSQL is not installed")
			case err == nil:
				t.Fatalf("%s: not caught", b.what)
			case strings.Contains(out, "[build failed]") || strings.Contains(out, "panic: test timed out"):
				t.Fatalf("%s: the suite did not run\n%s", b.what, tail(out))
			case !regexp.MustCompile(b.says + harm(b)).MatchString(out):
				t.Fatalf("%s: caught, but not by what it violates (%s):\n%s", b.what, b.says, tail(out))
			}
			caught++
		})
	}
	fmt.Printf("%d/%d caught\n", caught, len(bugs()))
}

// harm is what a random walk may meet before the violation that is named: any of
// the model's invariants, or a key change that cannot end.
func harm(b seeded) string {
	if b.suite != "./test/model" {
		return ""
	}
	return `|I[0-9]+: |job is still|did not end well|job failed|job blocked|service cannot|call failed|refused: `
}

// runWith runs the suite with the bug in.
func runWith(t *testing.T, root string, b seeded) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	args := []string{"test", "-v", "-count=1", "-vet=off", "-timeout", (patience - 10*time.Second).String()}
	if b.edit == nil {
		args = append(args, "-tags", b.name)
	} else {
		args = append(args, "-overlay", overlay(t, root, *b.edit))
	}
	args = append(args, "-run", b.run, b.suite)
	if b.suite == "./test/model" {
		args = append(args, "-rapid.checks=3000", "-rapid.nofailfile", "-rapid.shrinktime=1s")
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// overlay writes the edited file and the description of it that go build takes.
func overlay(t *testing.T, root string, e edit) string {
	t.Helper()
	path := filepath.Join(root, e.file)
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), e.old); n != 1 {
		t.Fatalf("the text to edit stands %d times in %s, want once: mend the table\n%s", n, e.file, e.old)
	}
	dir := t.TempDir()
	edited := filepath.Join(dir, "edited.go")
	if err := os.WriteFile(edited, []byte(strings.Replace(string(src), e.old, e.new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	description, err := json.Marshal(map[string]map[string]string{"Replace": {path: edited}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, description, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestEveryTagIsListed keeps the table whole: a build tag bug_… in the sources
// that is not in it fails.
func TestEveryTagIsListed(t *testing.T) {
	tag := regexp.MustCompile(`(?m)^//go:build (bug_[a-z_]+)$`)
	found := 0
	err := filepath.WalkDir("../../internal", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range tag.FindAllStringSubmatch(string(src), -1) {
			found++
			if !slices.ContainsFunc(bugs(), func(b seeded) bool { return b.name == m[1] }) {
				t.Errorf("%s: %s is not in the table", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("no build tag found in the sources")
	}
}

func tail(out string) string {
	const most = 3000
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return out
}
