package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// kmsRates is what localkms itself can do, operation by operation: raw requests of
// a client that does as little as it can. Client and KMS share the machine, so the
// processor time of a call says more than the calls per second.
func (b *bench) kmsRates(ctx context.Context, engine string) error {
	c := &rawClient{url: b.kms.Fast, transport: newTransport(8)}
	defer c.transport.CloseIdleConnections()
	s, err := newStock(ctx, c, b.size.stock)
	if err != nil {
		return err
	}
	loads := s.loads()
	made := map[string][2]figure{} // by operation, by half
	for _, l := range loads {
		var f [2]figure
		for half, workers := range []int{1, 8} {
			if l.after != "" {
				l.most = int(made[l.after][half].N)
			}
			if f[half], err = b.rateOf(ctx, c, l, half, workers); err != nil {
				return err
			}
		}
		made[l.operation] = f
		b.report.add(metric{Name: l.operation, Engine: engine, Value: f[1].rate(), Unit: "calls/s", Raw: raw{
			"1 caller, calls/s": {f[0].rate()}, "1 caller, CPU µs/call": {f[0].CPU},
			"8 callers, calls/s": {f[1].rate()}, "8 callers, CPU µs/call": {f[1].CPU},
		}})
	}
	b.say("localkms: %d operations", len(loads))
	return nil
}

// rateOf measures one operation with some callers. The processor time is that of
// localkms.
func (b *bench) rateOf(ctx context.Context, c *rawClient, l load, half, workers int) (figure, error) {
	send, err := c.sender(ctx, l, half)
	if err != nil {
		return figure{}, err
	}
	before, err := b.kms.stats(ctx)
	if err != nil {
		return figure{}, err
	}
	n, took, err := forAWhile(workers, b.size.rateTime, l.most, send)
	if err != nil {
		return figure{}, err
	}
	after, err := b.kms.stats(ctx)
	return figure{N: n, Seconds: took.Seconds(), CPU: (after.CPUMicros - before.CPUMicros) / float64(n)}, err
}

// rawClient makes signed requests of the customer's.
type rawClient struct {
	url       string
	transport *http.Transport
}

// sender returns what makes the i-th call of a load. A request that is always the
// same is signed once, which is good for minutes.
func (c *rawClient) sender(ctx context.Context, l load, half int) (func(i int) error, error) {
	if l.each != nil {
		return func(i int) error { return c.call(ctx, l.operation, l.each(half, i), nil) }, nil
	}
	body, err := json.Marshal(l.always)
	if err != nil {
		return nil, err
	}
	header, err := c.sign(ctx, l.operation, body)
	if err != nil {
		return nil, err
	}
	return func(int) error {
		_, err := c.send(ctx, l.operation, header, body)
		return err
	}, nil
}

// call makes one call and reads its answer, if into is not nil.
func (c *rawClient) call(ctx context.Context, operation string, request, into any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	header, err := c.sign(ctx, operation, body)
	if err != nil {
		return err
	}
	answer, err := c.send(ctx, operation, header, body)
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(answer, into)
}

func (c *rawClient) send(ctx context.Context, operation string, header http.Header, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = header
	response, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", operation, response.Status, answer)
	}
	return answer, err
}

func (c *rawClient) sign(ctx context.Context, operation string, body []byte) (http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = http.Header{"X-Amz-Target": {"TrentService." + operation}, "Content-Type": {"application/x-amz-json-1.1"}}
	as, err := credential(customer).Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return r.Header, v4.NewSigner().SignHTTP(ctx, as, r, hex.EncodeToString(sum[:]), "kms", region, time.Now())
}

// forAWhile calls fn for 0, 1, 2, … from some goroutines until the time is up, most
// calls are made (0: any number), or one fails.
func forAWhile(workers int, d time.Duration, most int, fn func(i int) error) (n int64, took time.Duration, err error) {
	var next, done atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for time.Since(start) < d {
				i := int(next.Add(1)) - 1
				if most > 0 && i >= most {
					return
				}
				if failure := fn(i); failure != nil {
					once.Do(func() { err = failure })
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return done.Load(), time.Since(start), err
}
