//go:build unix

package chaos_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// How much is asked of the rows whose histories are kept. A row has a short
// life, so that its history can be judged, and several clients at once.
const (
	linearRows     = 3 // at a time
	linearClients  = 3 // of each
	linearCalls    = 10
	linearEvery    = 250 * time.Millisecond // of a client, about
	linearDeletion = 12                     // one call of so many
)

// linear lets clients create, read, replace and delete the same rows until stop
// is closed, and records what they are told.
func (w *workload) linear(ctx context.Context, stop <-chan struct{}, seed uint64) error {
	group, ctx := errgroup.WithContext(ctx)
	for lane := range linearRows {
		group.Go(func() error {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return nil
				default:
				}
				row := fmt.Sprintf("lin-%d-%d", lane, n)
				if err := w.rowLife(ctx, stop, row, seed+uint64(lane)<<32+uint64(n)); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// rowLife is all that is done to one row, by clients that know nothing of one another.
func (w *workload) rowLife(ctx context.Context, stop <-chan struct{}, row string, seed uint64) error {
	clients, ctx := errgroup.WithContext(ctx)
	for client := range linearClients {
		c := &rowClient{workload: w, row: row, client: client, rng: rand.New(rand.NewPCG(seed, uint64(client)))}
		clients.Go(func() error {
			for range linearCalls {
				select {
				case <-stop:
					return nil
				default:
				}
				if err := wait(ctx, between(c.rng, linearEvery/2, linearEvery*3/2)); err != nil {
					return err
				}
				if err := c.call(ctx); err != nil {
					return fmt.Errorf("client %d of %s: %w", client, row, err)
				}
			}
			return nil
		})
	}
	return clients.Wait()
}

// A rowClient is one that calls, waits for the answer, and calls again.
type rowClient struct {
	*workload
	row    string
	client int
	rng    *rand.Rand
	// What it read last: a replacement is of that.
	value, etag string
}

func (c *rowClient) name() string { return domainName + "/dataKeys/" + c.row }

func (c *rowClient) call(ctx context.Context) error {
	switch n := c.rng.IntN(linearDeletion); {
	case c.value == "" && n%2 == 0:
		return c.create(ctx)
	case n == linearDeletion-1:
		return c.remove(ctx)
	case c.value != "" && n < linearDeletion/2:
		return c.replace(ctx)
	}
	return c.read(ctx)
}

func (c *rowClient) read(ctx context.Context) error {
	return c.record(ctx, linearInput{act: actRead}, func(ctx context.Context, r *running) (string, error) {
		k, err := r.dataKeys.GetDataKey(ctx, &keybrokerv1.GetDataKeyRequest{Name: c.name()})
		c.value, c.etag = k.GetContext()[opKey], k.GetEtag()
		return c.value, err
	})
}

func (c *rowClient) create(ctx context.Context) error {
	op := c.op("made")
	return c.record(ctx, linearInput{act: actCreate, value: op}, func(ctx context.Context, r *running) (string, error) {
		_, err := r.dataKeys.CreateDataKey(ctx, &keybrokerv1.CreateDataKeyRequest{Parent: domainName, DataKeyId: c.row,
			DataKey: &keybrokerv1.DataKey{Context: map[string]string{opKey: op}}, RequestId: op})
		return "", err
	})
}

func (c *rowClient) remove(ctx context.Context) error {
	op := c.op("gone")
	return c.record(ctx, linearInput{act: actDelete}, func(ctx context.Context, r *running) (string, error) {
		_, err := r.dataKeys.DeleteDataKey(ctx, &keybrokerv1.DeleteDataKeyRequest{Name: c.name(), RequestId: op})
		return "", err
	})
}

// replace puts a data key that the owner made in the place of what was read.
func (c *rowClient) replace(ctx context.Context) error {
	op, expects, etag := c.op("swap"), c.value, c.etag
	made, item, err := c.makeAtKMS(ctx, op)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.digests[op] = sha256.Sum256(made)
	c.mu.Unlock()
	item.DataKeyId, item.Etag = c.row, etag
	return c.record(ctx, linearInput{act: actReplace, value: op, expects: expects}, func(ctx context.Context, r *running) (string, error) {
		answer, err := r.dataKeys.ImportDataKeys(ctx, &keybrokerv1.ImportDataKeysRequest{Parent: domainName, RequestId: op,
			Items: []*keybrokerv1.ImportDataKeysRequest_Item{item}})
		if err != nil {
			return "", err
		}
		if refused := answer.GetResults()[0].GetError(); refused != nil {
			return "", itemError{refused}
		}
		return "", nil
	})
}

// makeAtKMS has the owner make a data key under the domain's key.
func (w *workload) makeAtKMS(ctx context.Context, op string) (plaintext []byte, item *keybrokerv1.ImportDataKeysRequest_Item, err error) {
	_, err = w.sys.do(ctx, func(ctx context.Context, r *running) error {
		d, err := r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName})
		if err != nil {
			return err
		}
		pairs := maps.Clone(d.GetEncryptionContext())
		pairs[opKey] = op
		made, err := r.customer.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &d.KmsKey, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs})
		if err != nil {
			return err
		}
		plaintext = made.Plaintext
		item = &keybrokerv1.ImportDataKeysRequest_Item{CiphertextBlob: made.CiphertextBlob, SourceKmsKey: d.GetKmsKey(), SourceEncryptionContext: pairs}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("the owner makes a data key: %w", err)
	}
	return plaintext, item, err
}

// record makes a call and notes how it ended. Half the calls are given up when
// they are left without an answer, half are repeated until there is one.
func (c *rowClient) record(ctx context.Context, in linearInput, call func(context.Context, *running) (string, error)) error {
	in.row = c.row
	var out linearOutput
	attempts := 0
	once := func(ctx context.Context, r *running) (err error) {
		attempts++
		out.value, err = call(ctx, r)
		return err
	}
	begun := c.history.now()
	var err error
	if c.rng.IntN(2) == 0 {
		err = c.sys.try(ctx, once)
	} else {
		_, err = c.sys.do(ctx, once)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if out.says, err = answerOf(err); err != nil {
		return fmt.Errorf("%s: %w", in.act, err)
	}
	if out.says == saysAbsent && attempts > 1 && in.act != actRead {
		// A repeat reads what was stored, which somebody may have deleted since. And
		// the first attempt may sit in a stopped replica, and delete what comes.
		out.says = saysUnknown
	}
	if out.says != saysDone {
		c.value, c.etag = "", ""
	}
	c.history.add(c.client, begun, in, out)
	return nil
}

// An itemError is the refusal of one item of a call that was answered.
type itemError struct{ *keybrokerv1.Status }

func (e itemError) Error() string { return e.GetReason() + ": " + e.GetMessage() }

// reasonOf is the broker's reason for an error, "" if it is not the broker's.
func reasonOf(err error) string {
	var item itemError
	if errors.As(err, &item) {
		return item.GetReason()
	}
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// answerOf reads an answer. An error is one that no client should get.
func answerOf(err error) (answer, error) {
	switch {
	case err == nil:
		return saysDone, nil
	case errors.Is(err, errNoAnswer):
		return saysUnknown, nil
	}
	switch reasonOf(err) {
	case "DATA_KEY_NOT_FOUND":
		return saysAbsent, nil
	case "DATA_KEY_ALREADY_EXISTS":
		return saysExists, nil
	case "DATA_KEY_ID_DELETED":
		return saysDeleted, nil
	case "ETAG_MISMATCH":
		return saysStale, nil
	case "KEY_DISABLED", "IMPORT_SOURCE_NOT_ALLOWED": // its source has been retired meanwhile
		return saysRefused, nil
	}
	return "", err
}
