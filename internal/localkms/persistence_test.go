package localkms_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

// dump is all that a KMS shows of its state.
func dump(t testing.TB, h *localkms.KMS) string {
	t.Helper()
	c, ctx := as(h, admin), t.Context()
	var b strings.Builder
	aliases := must[*kms.ListAliasesOutput](t)(c.ListAliases(ctx, &kms.ListAliasesInput{}))
	for _, a := range aliases.Aliases {
		meta := must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: a.AliasName})).KeyMetadata
		policy := must[*kms.GetKeyPolicyOutput](t)(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: meta.Arn})).Policy
		fmt.Fprintf(&b, "alias %s since %s of %s %q %s %v %s %s\n", *a.AliasName, a.LastUpdatedDate, *meta.Arn, *meta.Description,
			*meta.CurrentKeyMaterialId, meta.KeyState, meta.CreationDate, *policy)
		fmt.Fprintf(&b, "  rotation %v\n", planOf(t, c, *meta.Arn))
		for _, tag := range must[*kms.ListResourceTagsOutput](t)(c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: meta.Arn})).Tags {
			fmt.Fprintf(&b, "  tag %q %q\n", *tag.TagKey, *tag.TagValue)
		}
		for _, g := range grantsOf(t, h, admin, *meta.Arn) {
			fmt.Fprintf(&b, "  grant %s to %s %v %s", *g.GrantId, *g.GranteePrincipal, g.Operations, g.CreationDate)
			if g.Constraints != nil {
				fmt.Fprint(&b, g.Constraints.EncryptionContextEquals, g.Constraints.EncryptionContextSubset)
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}

// script does one change of each kind and calls after each.
func script(t testing.TB, h *localkms.KMS, after func()) (key string, blob []byte, token string) {
	t.Helper()
	c, ctx := as(h, admin), t.Context()
	after()
	key = newKey(t, h, brokerPolicy)
	after()
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/papers"), TargetKeyId: &key}))
	after()
	in := decryptGrant(key, worker)
	in.Name, in.Constraints = aws.String("n"), &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	token = *must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, in)).GrantToken
	after()
	second := must[*kms.CreateGrantOutput](t)(c.CreateGrant(ctx, decryptGrant(key, stranger)))
	after()
	must[*kms.PutKeyPolicyOutput](t)(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{
		KeyId: &key, Policy: aws.String(strings.Replace(brokerPolicy, "kms:ListGrants", "kms:Encrypt", 1)),
	}))
	after()
	must[*kms.RetireGrantOutput](t)(as(h, customerRoot).RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: second.GrantToken}))
	after()
	enableRotation(t, c, key, aws.Int32(90))
	after()
	blob = must[*kms.EncryptOutput](t)(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionContext: pairs("a", "1")})).CiphertextBlob
	rotate(t, c, key)
	after()
	must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))
	after()
	must[*kms.ScheduleKeyDeletionOutput](t)(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key}))
	after()
	must[*kms.CancelKeyDeletionOutput](t)(c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &key}))
	after()
	must[*kms.UpdateKeyDescriptionOutput](t)(c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &key, Description: aws.String("papers")}))
	after()
	must[*kms.TagResourceOutput](t)(c.TagResource(ctx, &kms.TagResourceInput{KeyId: &key, Tags: tagsOf("a", "1", "b", "")}))
	after()
	must[*kms.UntagResourceOutput](t)(c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &key, TagKeys: []string{"a"}}))
	after()
	must[*kms.CreateAliasOutput](t)(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/more"), TargetKeyId: &key}))
	after()
	other := newKey(t, h, "")
	after()
	enableRotation(t, c, other, nil)
	after()
	must[*kms.DisableKeyRotationOutput](t)(c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: &other}))
	after()
	must[*kms.UpdateAliasOutput](t)(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: aws.String("alias/more"), TargetKeyId: &other}))
	after()
	must[*kms.DeleteAliasOutput](t)(c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: aws.String("alias/more")}))
	after()
	return key, blob, token
}

func reopen(t testing.TB, dir string) *localkms.KMS {
	t.Helper()
	return reopenAt(t, dir, newClock())
}

func reopenAt(t testing.TB, dir string, clock *clock) *localkms.KMS {
	t.Helper()
	h, err := localkms.New(localkms.Config{Dir: dir, Principals: cast(), Now: clock.Now, ClockSkew: -1})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func closeKMS(t testing.TB, h *localkms.KMS) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// Everything comes back: keys with their material, policies, states, aliases,
// grants, and the tokens that were given out.
func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kms")
	h := reopen(t, dir)
	key, blob, token := script(t, h, func() {})
	want := dump(t, h)
	closeKMS(t, h)

	for range 2 { // from the journal, then from its compacted form
		h = reopen(t, dir)
		if diff := cmp.Diff(want, dump(t, h)); diff != "" {
			t.Errorf("state (-before +after):\n%s", diff)
		}
		closeKMS(t, h)
	}
	delayed, err := localkms.New(localkms.Config{Dir: dir, Principals: cast(), Now: newClock().Now, ClockSkew: -1, GrantDelay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer closeKMS(t, delayed)
	must[*kms.EnableKeyOutput](t)(as(delayed, admin).EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &key}))
	in := &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs("a", "1"), GrantTokens: []string{token}}
	must[*kms.DecryptOutput](t)(as(delayed, worker).Decrypt(t.Context(), in))
	in.GrantTokens = nil
	_, err = as(delayed, worker).Decrypt(t.Context(), in)
	wantCode(t, err, "AccessDeniedException")
}

func TestDirectoryIsPrivateAndLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kms")
	h := reopen(t, dir)
	newKey(t, h, "")
	if _, err := localkms.New(localkms.Config{Dir: dir, Now: newClock().Now}); err == nil || !strings.Contains(err.Error(), "in use by another KMS") {
		t.Errorf("a second KMS on the directory: %v", err)
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	closeKMS(t, h)
	closeKMS(t, h)
	_, err = as(h, admin).CreateKey(t.Context(), &kms.CreateKeyInput{})
	wantRefusal(t, err, "KMSInternalException", "The request was rejected because an internal exception occurred.")
	closeKMS(t, reopen(t, dir))
}

// A journal cut at any byte opens to the state after one of the changes, the later
// the more of it there is, and never to anything else. Opening writes a file, so
// here it is every byte about the ends of lines, where something is decided, and
// some within; TestReplayOfEveryPrefix leaves none out.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	h := reopen(t, dir)
	var states []string
	script(t, h, func() { states = append(states, dump(t, h)) })
	closeKMS(t, h)
	journal, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	cut := t.TempDir()
	reached := 0
	for n := range len(journal) + 1 {
		if n%64 != 0 && !bytes.Contains(journal[max(0, n-3):min(n+3, len(journal))], []byte("\n")) {
			continue
		}
		if err := os.WriteFile(filepath.Join(cut, "journal"), journal[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		h := reopen(t, cut)
		got := dump(t, h)
		closeKMS(t, h)
		for reached < len(states)-1 && got != states[reached] {
			reached++
		}
		if got != states[reached] {
			t.Fatalf("cut at byte %d of %d: the state is none of those before:\n%s", n, len(journal), got)
		}
	}
	if reached != len(states)-1 {
		t.Errorf("the whole journal leads to state %d of %d", reached, len(states)-1)
	}
}

// A journal that the program wrote before there were deletions, rotations and keys
// of other kinds opens to the same state. It is what script left, then.
func TestOldJournal(t *testing.T) {
	dir := t.TempDir()
	old, err := os.ReadFile("testdata/journal_v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	blob, err := base64.StdEncoding.DecodeString("ATExMTEyMjIyMzMzM2pMNxraQkpytSNqME9Hl2ECXnjRuYHZRvTfT3t3Pofk/XAvPfiSNZgOEYG/zy6JPba6ub1JQ9aR4O2x6ngiI9xI" +
		"WX2BqI7eaNjT72xOHy38CXVzLXdlc3QtMsI/ANfwK8bBzzZvXDqQTP9OszqpysRW2pc/KmmsahRGBg==")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // as it was, and as it is written now
		h := reopen(t, dir)
		c, ctx := as(h, admin), t.Context()
		meta := must[*kms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String("alias/papers")})).KeyMetadata
		if meta.KeyState != types.KeyStateDisabled || meta.KeySpec != types.KeySpecSymmetricDefault || len(grantsOf(t, h, admin, *meta.Arn)) != 1 {
			t.Errorf("%s, %s, %d grants", meta.KeyState, meta.KeySpec, len(grantsOf(t, h, admin, *meta.Arn)))
		}
		must[*kms.EnableKeyOutput](t)(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: meta.Arn}))
		rotate(t, c, *meta.Arn)
		must[*kms.DecryptOutput](t)(as(h, worker).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs("a", "1")}))
		must[*kms.DisableKeyOutput](t)(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: meta.Arn}))
		closeKMS(t, h)
	}
}

// A journal of before there was automatic rotation, and before HMAC keys could do
// anything, opens too. Its HMAC key has no material and gets some, for good.
func TestJournalWithoutMacMaterial(t *testing.T) {
	dir := t.TempDir()
	old, err := os.ReadFile("testdata/journal_kinds")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	blobs := map[string]string{
		"first": "ATExMTEyMjIyMzMzM4SfzK5svkMTlJTzaYktYWENuGEAiGELLPrDqoHTC49N1xSBRz1fMWDZUkdfNoJTEtPA+QD0SsWTS9MHwT+hVCalfAj+yG11phwiY26u6QXZ" +
			"CXVzLXdlc3QtMnYTiSI4bFqE+5BmPSGhFUf9a78x/HujhrDpU1mYVvJwAVgNmW0=",
		"second": "ATExMTEyMjIyMzMzM4SfzK5svkMTlJTzaYktYWHU04tRJGIlobUwC3y3f4r0UJnyImVUQwxSPe2w/VXgC6r48+0e0F2FAwYtUJcoX2V/Ce+g4ZpRh1hGk3y+jxZO" +
			"CXVzLXdlc3QtMsU2YzoBLviLnCXQzl57PmSlkqttWBOyV6sm94tkiwrxA9OsZ5LM",
	}
	var macs [][]byte
	for range 3 {
		h := reopen(t, dir)
		c, ctx := as(h, admin), t.Context()
		for want, text := range blobs {
			blob, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			if got := must[*kms.DecryptOutput](t)(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})).Plaintext; string(got) != want {
				t.Errorf("opened %q, want %q", got, want)
			}
		}
		macs = append(macs, must[*kms.GenerateMacOutput](t)(c.GenerateMac(ctx, &kms.GenerateMacInput{
			KeyId: aws.String("alias/mac"), MacAlgorithm: "HMAC_SHA_384", Message: []byte("x"),
		})).Mac)
		if keys := must[*kms.ListKeysOutput](t)(c.ListKeys(ctx, &kms.ListKeysInput{})).Keys; len(keys) != 4 {
			t.Errorf("%d keys, want 4", len(keys))
		}
		closeKMS(t, h)
	}
	if !bytes.Equal(macs[0], macs[1]) || !bytes.Equal(macs[0], macs[2]) {
		t.Errorf("the MAC of one message changes with each start: %x", macs)
	}
}

// A change after a torn line is not lost behind it.
func TestChangeAfterCrash(t *testing.T) {
	dir := t.TempDir()
	h := reopen(t, dir)
	key := newKey(t, h, "")
	closeKMS(t, h)
	path := filepath.Join(dir, "journal")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`0123abcd [{"enabled":{"ke`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	h = reopen(t, dir)
	must[*kms.DisableKeyOutput](t)(as(h, admin).DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &key}))
	closeKMS(t, h)
	h = reopen(t, dir)
	defer closeKMS(t, h)
	if meta := must[*kms.DescribeKeyOutput](t)(as(h, admin).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata; meta.Enabled {
		t.Error("the change after the crash is gone")
	}
}

// Damage that no crash leaves is refused, not skipped.
func TestDamagedJournal(t *testing.T) {
	dir := t.TempDir()
	h := reopen(t, dir)
	script(t, h, func() {})
	closeKMS(t, h)
	path := filepath.Join(dir, "journal")
	journal, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line, at := 1, 0; line < bytes.Count(journal, []byte("\n")); line++ {
		damaged := bytes.Clone(journal)
		damaged[at+20] ^= 1
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("line %d: checksum does not match", line)
		if _, err := localkms.New(localkms.Config{Dir: dir, Now: newClock().Now}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("damage in line %d: %v", line, err)
		}
		at += bytes.IndexByte(journal[at:], '\n') + 1
	}
}

// Changes made at once share the disk's time and are all kept.
func TestConcurrentChangesAreKept(t *testing.T) {
	dir := t.TempDir()
	h := reopen(t, dir)
	key := newKey(t, h, "")
	const grants = 64
	var wg sync.WaitGroup
	for i := range grants {
		wg.Go(func() {
			in := decryptGrant(key, worker)
			in.Name = aws.String(fmt.Sprint("n", i%32)) // each name twice
			in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", fmt.Sprint(i%32))}
			if _, err := as(h, admin).CreateGrant(context.Background(), in); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	closeKMS(t, h)
	h = reopen(t, dir)
	defer closeKMS(t, h)
	if n := len(grantsOf(t, h, admin, key)); n != grants/2 {
		t.Errorf("%d grants, want %d", n, grants/2)
	}
}

// What was acknowledged before a kill -9 is there after it.
func TestKill(t *testing.T) {
	if dir := os.Getenv("LOCALKMS_TEST_KILL_DIR"); dir != "" {
		grantForever(t, dir)
		return
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestKill$")
	child.Env = append(os.Environ(), "LOCALKMS_TEST_KILL_DIR="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]bool{}
	var key string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		kind, value, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "key":
			key = value
		case "grant":
			acknowledged[value] = true
		}
		if len(acknowledged) == 25 {
			_ = child.Process.Kill() // the rest of the pipe is still read
		}
	}
	_ = child.Wait() // it was killed
	if len(acknowledged) < 25 {
		t.Fatalf("the child made %d grants and stopped", len(acknowledged))
	}
	h := reopen(t, dir)
	defer closeKMS(t, h)
	for _, g := range grantsOf(t, h, admin, key) {
		delete(acknowledged, *g.GrantId)
	}
	if len(acknowledged) > 0 || key == "" {
		t.Errorf("%d acknowledged grants are lost", len(acknowledged))
	}
}

func grantForever(t *testing.T, dir string) {
	h := reopen(t, dir)
	key := newKey(t, h, "")
	fmt.Println("key " + key)
	for {
		g := must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), decryptGrant(key, worker)))
		fmt.Println("grant " + *g.GrantId)
	}
}
