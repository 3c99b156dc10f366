package demo

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/keybroker/keybroker/client"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// verifyAll keeps the result, which nothing can look up again once the domain is
// deleted.
func (r *run) verifyAll(ctx context.Context) error {
	result, err := r.verify(ctx)
	if err == nil {
		r.st.Result = &result
	}
	return err
}

// verify looks up whatever the result claims: in the inventory, at KMS as the
// customer, and in every file.
func (r *run) verify(ctx context.Context) (Result, error) {
	result := Result{SafeToRetire: r.st.Safe}
	domain, err := r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
	if err != nil {
		return Result{}, err
	}
	if result.LiveOldGrants, err = liveGrants(ctx, r.customer, r.st.OldKey, domain.GetEncryptionContext()); err != nil {
		return Result{}, fmt.Errorf("the customer lists the old key's grants: %w", err)
	}
	differing, err := r.countDataKeys(ctx, &result)
	if err != nil {
		return Result{}, err
	}
	files, differingFiles, err := r.compareFiles(ctx)
	if err != nil {
		return Result{}, err
	}
	result.Files, result.Differing = files, differing+differingFiles
	all := r.tally.sums()
	result.ReaderErrors, result.KMSCalls = int(all.ReaderErrors), all.KMSCalls
	result.Seconds = math.Round(all.Seconds*10) / 10
	r.report(result, all.Opened)
	return result, nil
}

// countDataKeys counts the inventory, and unwraps every imported data key.
func (r *run) countDataKeys(ctx context.Context, result *Result) (differing int, err error) {
	blobs, err := r.legacyBlobs(ctx)
	if err != nil {
		return 0, err
	}
	fingerprints := make(map[string]string, len(blobs))
	for _, b := range blobs {
		fingerprints[b.id()] = b.SHA256
	}
	var wrong atomic.Int64
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	err = r.eachDataKey(ctx, func(k *keybrokerv1.DataKey) error {
		result.DataKeys++
		switch k.GetKmsKey() {
		case r.st.OldKey:
			result.Left++
		case r.st.NewKey:
			if k.GetUpdateTime().AsTime().After(k.GetCreateTime().AsTime()) {
				result.Moved++
			}
		}
		if want, imported := fingerprints[idOf(k)]; imported {
			result.Imported++
			group.Go(func() error {
				if !r.unwrapsTo(groupCtx, k, want) {
					wrong.Add(1)
				}
				return groupCtx.Err()
			})
		}
		return nil
	})
	if waitErr := group.Wait(); err == nil {
		err = waitErr
	}
	missing := len(blobs) - result.Imported
	return int(wrong.Load()) + missing, err
}

// unwrapsTo says whether KMS, asked in the service's role, gives the very data
// key that the legacy service had.
func (r *run) unwrapsTo(ctx context.Context, k *keybrokerv1.DataKey, want string) bool {
	key, err := decrypter{r.service}.Decrypt(ctx, k.GetCiphertextBlob(), k.GetEncryptionContext(), k.GetKmsKey(), r.currentTokens(""))
	defer clear(key)
	if err == nil && digest(key) == want {
		return true
	}
	if ctx.Err() == nil {
		r.story.say("legacy", "%s did not come back: %v", idOf(k), err)
	}
	return false
}

// compareFiles opens every sealed file, with a client that remembers nothing,
// and compares it byte by byte.
func (r *run) compareFiles(ctx context.Context) (files, differing int, err error) {
	ids, err := r.shelf.list()
	if err != nil {
		return 0, 0, err
	}
	fresh, err := r.newSealer()
	if err != nil {
		return 0, 0, err
	}
	defer fresh.Close()
	bar := r.story.bar("compare", len(ids))
	var wrong atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for _, id := range ids {
		group.Go(func() error {
			err := r.compare(ctx, fresh, id)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				wrong.Add(1)
				r.story.say("service", "%s did not come back: %v", id, err)
			}
			bar.add(1)
			r.act()
			return nil
		})
	}
	err = group.Wait()
	bar.end()
	missing := 0
	for i := range r.st.Files {
		if !r.shelf.has(fmt.Sprintf("file-%04d", i+1)) {
			missing++
		}
	}
	return len(ids), int(wrong.Load()) + missing, err
}

// compare holds an opened file against the bytes that it was made of. A file
// that was changed on disk since it was sealed is held against the digest that
// was taken then.
func (r *run) compare(ctx context.Context, c *client.Client, id string) error {
	l, envelope, err := r.shelf.get(id)
	if err != nil {
		return err
	}
	got, err := c.Open(ctx, envelope, []byte(id))
	if err != nil {
		return err
	}
	want := addedContent(id)
	if l.Source != "" {
		want, err = os.ReadFile(filepath.Join(r.st.Dir, filepath.FromSlash(l.Source)))
	}
	if err != nil || digest(want) != l.SHA256 {
		if digest(got) != l.SHA256 {
			return errDiffers
		}
		return nil
	}
	if !bytes.Equal(got, want) {
		return errDiffers
	}
	return nil
}

// report is the result for people.
func (r *run) report(result Result, opened int64) {
	line := func(what, format string, args ...any) {
		r.story.print(fmt.Sprintf("  %-28s%s", what, fmt.Sprintf(format, args...)))
	}
	count := func(n int) string { return thousands(int64(n)) }
	r.story.print("")
	key := "disabled"
	if !r.st.Disabled {
		key = "still enabled"
	}
	r.story.print("Looked up afterwards, with the old key " + key + ":")
	line("files opened and compared", "%s, of which %s differ", count(result.Files), count(result.Differing))
	line("data keys in the inventory", "%s, of which %s imported", count(result.DataKeys), count(result.Imported))
	line("moved to the new key", "%s", count(result.Moved))
	line("left under the old key", "%s", count(result.Left))
	line("live grants on the old key", "%s (the customer asked KMS)", count(result.LiveOldGrants))
	line("reads during the change", "%s, of which %s failed", thousands(opened), count(result.ReaderErrors))
	line("calls of KMS", "%s", thousands(result.KMSCalls))
	r.story.print("")
}
