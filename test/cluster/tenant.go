package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// serviceConfig repeats what is UNAVAILABLE, as docs/integrate.md tells users to.
const serviceConfig = `{"methodConfig": [{
	"name": [{}],
	"waitForReady": true,
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

// callTime bounds a call with its repetitions: a port-forward whose pod is gone
// may take a while to say so.
const callTime = 30 * time.Second

// A tenant is a domain and who uses it. Its domain is new in each run, so that a
// database may serve again.
type tenant struct {
	domain string // its name
	conn   *grpc.ClientConn

	domains keybrokerv1.DomainServiceClient
	keys    keybrokerv1.DataKeyServiceClient
	jobs    keybrokerv1.ReencryptionServiceClient

	mu     sync.Mutex
	stored map[string]bool // names of data keys that were acknowledged
}

func newTenant(c cluster, id string) (*tenant, error) {
	eager := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}, MinConnectTimeout: 10 * time.Second}
	conn, err := grpc.NewClient("passthrough:///"+deployment, grpc.WithContextDialer(c.dial), grpc.WithConnectParams(eager),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(serviceConfig), grpc.WithUnaryInterceptor(bounded))
	if err != nil {
		return nil, err
	}
	return &tenant{
		domain: "domains/" + id, conn: conn, stored: map[string]bool{},
		domains: keybrokerv1.NewDomainServiceClient(conn), keys: keybrokerv1.NewDataKeyServiceClient(conn), jobs: keybrokerv1.NewReencryptionServiceClient(conn),
	}, nil
}

func bounded(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}

// id is the last part of the domain's name.
func (t *tenant) id() string { return strings.TrimPrefix(t.domain, "domains/") }

// request is a request_id that no other run has used.
func (t *tenant) request(what string) string { return t.id() + "-" + what }

// create makes the domain.
func (t *tenant) create(ctx context.Context, region string) error {
	_, err := t.domains.CreateDomain(ctx, &keybrokerv1.CreateDomainRequest{
		DomainId: t.id(), Domain: &keybrokerv1.Domain{DisplayName: "cluster test", Region: region}, RequestId: t.request("create"),
	})
	return err
}

// policy is the one for a key of the domain.
func (t *tenant) policy(ctx context.Context, key string) (string, error) {
	p, err := t.domains.GenerateKeyPolicy(ctx, &keybrokerv1.GenerateKeyPolicyRequest{
		Name: t.domain, Base: &keybrokerv1.GenerateKeyPolicyRequest_KeyAccount{KeyAccount: strings.Split(key, ":")[4]},
	})
	return p.GetPolicyDocument(), err
}

// store makes data keys, four at a time, until there are n or ctx ends, and
// remembers which were acknowledged.
func (t *tenant) store(ctx context.Context, prefix string, n int) error {
	var work sync.WaitGroup
	failed := make([]error, 4)
	for w := range failed {
		work.Go(func() {
			for i := w; i < n && ctx.Err() == nil && failed[w] == nil; i += len(failed) {
				id := fmt.Sprintf("%s-%06d", prefix, i)
				// A call at work when ctx ends is finished: no outcome stays unknown.
				made, err := t.keys.CreateDataKey(context.WithoutCancel(ctx), &keybrokerv1.CreateDataKeyRequest{Parent: t.domain, DataKeyId: id, RequestId: t.request(id)})
				if failed[w] = err; err == nil {
					t.mu.Lock()
					t.stored[made.GetName()] = true
					t.mu.Unlock()
				}
			}
		})
	}
	work.Wait()
	return errors.Join(failed...)
}

// change begins a key change.
func (t *tenant) change(ctx context.Context, key string) (string, error) {
	d, err := t.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: t.domain})
	if err != nil {
		return "", err
	}
	job, err := t.domains.ChangeKey(ctx, &keybrokerv1.ChangeKeyRequest{
		Name: t.domain, KmsKey: key, Etag: d.GetEtag(), Reason: "cluster test", RequestId: t.request(key[max(0, len(key)-36):]),
	})
	return job.GetName(), err
}

// finish waits until a job has ended well.
func (t *tenant) finish(ctx context.Context, job string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		j, err := t.jobs.GetReencryptionJob(ctx, &keybrokerv1.GetReencryptionJobRequest{Name: job})
		if err != nil {
			return err
		}
		switch j.GetState() {
		case keybrokerv1.ReencryptionJob_STATE_SUCCEEDED:
			return nil
		case keybrokerv1.ReencryptionJob_STATE_RUNNING:
		default:
			return fmt.Errorf("%s is %v in %v: %v %v", job, j.GetState(), j.GetPhase(), j.GetBlock(), j.GetError())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is still in %v: %w", job, j.GetPhase(), ctx.Err())
		}
	}
}

// check compares what was acknowledged with what is there: the same rows, all of
// them under one key.
func (t *tenant) check(ctx context.Context) error {
	d, err := t.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: t.domain})
	if err != nil {
		return err
	}
	there := 0
	for token := ""; ; {
		page, err := t.keys.ListDataKeys(ctx, &keybrokerv1.ListDataKeysRequest{Parent: t.domain, PageSize: 500, PageToken: token})
		if err != nil {
			return err
		}
		for _, k := range page.GetDataKeys() {
			switch there++; {
			case !t.stored[k.GetName()]:
				return fmt.Errorf("%s is there, and nobody was told so", k.GetName())
			case k.GetKmsKey() != d.GetKmsKey():
				return fmt.Errorf("%s is under %s, its domain under %s", k.GetName(), k.GetKmsKey(), d.GetKmsKey())
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if there != len(t.stored) {
		return fmt.Errorf("%d data keys are there, %d were acknowledged", there, len(t.stored))
	}
	return nil
}

// shred deletes the domain, its data keys and its KMS grants.
func (t *tenant) shred(ctx context.Context) error {
	_, err := t.domains.DeleteDomain(ctx, &keybrokerv1.DeleteDomainRequest{Name: t.domain, CryptoShred: true, Reason: "cluster test"})
	return err
}
