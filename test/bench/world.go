package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
)

const (
	region          = "us-east-1"
	customerAccount = "111122223333"
	customer        = "arn:aws:iam::111122223333:root"
	service         = "arn:aws:iam::222233334444:role/orders"
	registrar       = "arn:aws:iam::999999999999:role/keybroker-registrar"
	worker          = "arn:aws:iam::999999999999:role/keybroker-worker"
	tenant          = broker.DomainID("acme")
)

func caller() broker.Caller { return broker.Caller{Subject: "bench"} }

func accessKey(principal string) string {
	return map[string]string{customer: "AKIACUSTOMER", registrar: "AKIAREGISTRAR", worker: "AKIAWORKER"}[principal]
}

func principals() []localkms.Principal {
	var all []localkms.Principal
	for _, arn := range []string{customer, registrar, worker} {
		all = append(all, localkms.Principal{ARN: arn, AccessKeyID: accessKey(arn), SecretAccessKey: "bench"})
	}
	return all
}

func credential(principal string) aws.CredentialsProvider {
	return aws.NewCredentialsCache(credentials.NewStaticCredentialsProvider(accessKey(principal), "bench", ""))
}

// A pool is how many calls the engine has at KMS at a time.
type pool struct{ workers, calls int }

func (p pool) total() int { return p.workers * p.calls }

// enginePool is the engine's default.
func enginePool() pool { return pool{workers: 4, calls: 16} }

// slowPool keeps a KMS of 8 ms at no more than 2,000 calls a second, which leaves
// a small machine time to spare: what then is lost is lost by waiting.
func slowPool() pool { return pool{workers: 4, calls: 4} }

// A setting is what a world is made of, but for its place and KMS.
type setting struct {
	pool
	quota float64       // requests a second that the pacer is told of, 0 for none
	lease time.Duration // of a shard; 0 takes the engine's
}

// A world is a broker wired as cmd/broker wires it, in this process, and beside
// it the SDK's own client on the same connections.
type world struct {
	store      *sqlstore.Store
	broker     *broker.Broker
	engine     *rotation.Engine
	foreground *awskms.KMS
	background *awskms.KMS
	transport  *http.Transport
	watch      *watch
	pool       pool
	// bare is the SDK's client in the worker's role, owner in the customer's.
	bare, owner *kms.Client
	newID       func() string
	blobs       []blob // that importRows takes in
	// Attempts at KMS, as awskms's observer counts them, and those throttled.
	calls, throttled atomic.Int64
}

// direct is the adapter's short cut around http.Client, for the bare client too.
type direct struct{ http.RoundTripper }

func (d direct) Do(r *http.Request) (*http.Response, error) { return d.RoundTrip(r) }

// newTransport has the adapter's own settings, with a connection for each call.
func newTransport(connections int) *http.Transport {
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:           dialer.DialContext,
		ForceAttemptHTTP2:     true,
		ResponseHeaderTimeout: 10 * time.Second,
		MaxIdleConnsPerHost:   connections,
		IdleConnTimeout:       60 * time.Second,
		DisableCompression:    true,
	}
}

func openWorld(ctx context.Context, at place, endpoint string, set setting) (_ *world, err error) {
	w := &world{transport: newTransport(set.total()), watch: newWatch(), pool: set.pool, newID: newIDs()}
	client := func(principal string) *kms.Client {
		return kms.New(kms.Options{Region: region, BaseEndpoint: &endpoint, Credentials: credential(principal),
			HTTPClient: direct{w.transport}, Retryer: aws.NopRetryer{}, RetryMaxAttempts: 1})
	}
	w.bare, w.owner = client(worker), client(customer)
	if w.store, err = at.open(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	pace, err := pacer.New(pacer.Config{Now: time.Now, Quota: func(pacer.Budget) float64 { return set.quota }})
	if err != nil {
		return nil, err
	}
	config := awskms.Config{
		Registrar: credential(registrar), Worker: credential(worker), ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
		BaseEndpoint: endpoint, Region: region, Transport: stagedTransport{w.transport}, Jitter: mathrand.Float64, Pacer: pace,
		Observe: func(_ string, class broker.KMSClass, _ time.Duration) {
			w.calls.Add(1)
			if class == broker.KMSThrottled {
				w.throttled.Add(1)
			}
		}, Now: time.Now,
	}
	if w.foreground, err = awskms.New(config, pacer.Foreground); err != nil {
		return nil, err
	}
	if w.background, err = awskms.New(config, pacer.Background); err != nil {
		return nil, err
	}
	// The windows are zero: what is measured is work, not waiting.
	if w.broker, err = broker.New(broker.Config{Deployment: "bench", RegistrarRole: registrar, WorkerRole: worker,
		KMSCallTimeout: 10 * time.Second, NewID: w.newID, NewUID: rand.Text,
	}, stagedStore{w.store.Broker()}, w.foreground, stagedWorker{w.foreground}); err != nil {
		return nil, err
	}
	w.engine, err = rotation.New(rotation.Config{Owner: "bench", RegistrarRole: registrar, WorkerRole: worker,
		Workers: set.workers, CallsPerShard: set.calls, LeaseTTL: set.lease, Rand: mathrand.Float64, NewID: w.newID, NewProbe: rand.Text,
		Logger: slog.New(slog.NewJSONHandler(io.Discard, nil)), Observe: w.watch,
	}, w.store.Rotation(), w.broker, w.background, w.background)
	return w, err
}

func (w *world) close() error {
	w.transport.CloseIdleConnections()
	return w.store.Close()
}

// newIDs mints 26 characters in the order of the calls, also over processes that
// share a database one after the other.
func newIDs() func() string {
	var n atomic.Int64
	n.Store(time.Now().UnixMicro())
	return func() string { return fmt.Sprintf("%026d", n.Add(1)) }
}

// newKey makes a customer's key that serves the tenant.
func (w *world) newKey(ctx context.Context) (broker.KeyARN, error) {
	policy, err := w.broker.GenerateKeyPolicy(ctx, caller(), broker.KeyPolicyRequest{
		Domain: tenant, KeyAccount: customerAccount, Profile: broker.PolicyStandard})
	if err != nil {
		return "", err
	}
	made, err := w.owner.CreateKey(ctx, &kms.CreateKeyInput{Policy: &policy.Document})
	if err != nil {
		return "", err
	}
	return broker.KeyARN(aws.ToString(made.KeyMetadata.Arn)), nil
}

// onboard makes the tenant, with its first key by the normal path.
func (w *world) onboard(ctx context.Context) error {
	if _, _, err := w.broker.CreateDomain(ctx, caller(), broker.NewDomain{ID: tenant, Region: region}); err != nil {
		return err
	}
	_, err := w.changeKey(ctx, 0)
	return err
}

// distinctBlobs is how many blobs the loader asks KMS for; the rows share them.
// After the first key change each row has its own.
const distinctBlobs = 1000

// rowsPerLoad is the size of the loader's transactions.
const rowsPerLoad = 5_000

// A blob is a data key as KMS makes it.
type blob struct {
	pairs   broker.Context
	wrapped broker.WrappedKey
}

// makeBlobs has KMS make data keys of the tenant.
func (w *world) makeBlobs(ctx context.Context, n int) ([]blob, error) {
	d, _, err := w.broker.GetDomain(ctx, caller(), tenant)
	if err != nil {
		return nil, err
	}
	blobs := make([]blob, n)
	return blobs, inParallel(w.pool.total(), n, func(i int) error {
		pairs := broker.Context{"object": fmt.Sprintf("recordings/2026/%06d", i)}
		wrapped, err := w.foreground.GenerateDataKeyWithoutPlaintext(ctx, broker.GenerateDataKey{
			Key: d.KMSKey, KeySpec: broker.DefaultKeySpec, Context: pairs.With(d.Reserved)})
		blobs[i] = blob{pairs, wrapped}
		return err
	})
}

// load inserts rows through the store's port.
func (w *world) load(ctx context.Context, rows int) error {
	d, _, err := w.broker.GetDomain(ctx, caller(), tenant)
	if err != nil {
		return err
	}
	blobs, err := w.makeBlobs(ctx, min(rows, distinctBlobs))
	if err != nil {
		return err
	}
	for from := 0; from < rows; from += rowsPerLoad {
		err := w.store.Broker().Update(ctx, func(tx broker.Tx) error {
			var keys []broker.DataKey
			for i := from; i < min(rows, from+rowsPerLoad); i++ {
				b := blobs[i%len(blobs)]
				keys = append(keys, broker.DataKey{Domain: d.UID, ID: broker.DataKeyID(fmt.Sprintf("key-%09d", i)),
					UID: broker.DataKeyUID(w.newID()), Ciphertext: b.wrapped.Ciphertext, Context: b.pairs, KeySpec: broker.DefaultKeySpec,
					Epoch: d.Epoch, KeyMaterialID: b.wrapped.KeyMaterialID, KMSRequestID: b.wrapped.RequestID, Version: 1,
					CreateTime: tx.Now(), UpdateTime: tx.Now()})
			}
			refused, err := tx.InsertDataKeys(ctx, keys)
			return errors.Join(append(refused, err)...)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rows reads every row of the tenant.
func (w *world) rows(ctx context.Context) (d broker.Domain, all []broker.DataKey, err error) {
	if d, _, err = w.broker.GetDomain(ctx, caller(), tenant); err != nil {
		return d, nil, err
	}
	err = w.store.Broker().View(ctx, func(tx broker.Tx) (err error) {
		all, err = tx.ListDataKeys(ctx, d.UID, "", 1<<30)
		return err
	})
	return d, all, err
}
