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

// kmsRates is what localkms itself can do: raw requests, made beforehand, by a
// client that does as little as it can. Client and KMS share the machine, so
// the processor time of a call says more than the calls per second.
func (b *bench) kmsRates(ctx context.Context) error {
	transport := newTransport(8)
	defer transport.CloseIdleConnections()
	send := func(operation string, header http.Header, body []byte) ([]byte, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.kms.Fast, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header = header
		response, err := transport.RoundTrip(r)
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
	fixed, err := prepareRates(func(operation string, body []byte) ([]byte, error) {
		header, err := b.signed(ctx, operation, body)
		if err != nil {
			return nil, err
		}
		return send(operation, header, body)
	})
	if err != nil {
		return err
	}
	for _, operation := range []string{"GenerateDataKeyWithoutPlaintext", "ReEncrypt", "Encrypt", "Decrypt", "CreateGrant"} {
		for _, workers := range []int{1, 8} {
			before, err := b.kms.stats(ctx)
			if err != nil {
				return err
			}
			header, err := b.signed(ctx, operation, fixed[operation])
			if err != nil {
				return err
			}
			n, took, err := forAWhile(workers, b.size.rateTime, func() error {
				_, err := send(operation, header, fixed[operation])
				return err
			})
			if err != nil {
				return err
			}
			after, err := b.kms.stats(ctx)
			if err != nil {
				return err
			}
			callers := "1 caller"
			if workers > 1 {
				callers = fmt.Sprintf("%d callers", workers)
			}
			b.report.add(metric{Name: operation + ", " + callers, Engine: "localkms", Value: float64(n) / took.Seconds(), Unit: "calls/s",
				Raw: raw{"localkms's CPU, µs/call": {(after.CPUMicros - before.CPUMicros) / float64(n)}}})
		}
	}
	b.say("localkms: five operations")
	return nil
}

// prepareRates makes a key and the request bodies.
func prepareRates(call func(string, []byte) ([]byte, error)) (map[string][]byte, error) {
	made, err := call("CreateKey", []byte("{}"))
	if err != nil {
		return nil, err
	}
	var key struct{ KeyMetadata struct{ Arn string } }
	if err := json.Unmarshal(made, &key); err != nil {
		return nil, err
	}
	id := key.KeyMetadata.Arn
	pairs := map[string]string{"keybroker:domain": "01JQ0000000000000000000000", "object": "recordings/2026/000001"}
	bodies := map[string]any{
		"GenerateDataKeyWithoutPlaintext": map[string]any{"KeyId": id, "KeySpec": "AES_256", "EncryptionContext": pairs},
		"Encrypt":                         map[string]any{"KeyId": id, "Plaintext": make([]byte, 32), "EncryptionContext": pairs},
		"CreateGrant": map[string]any{"KeyId": id, "GranteePrincipal": service, "Operations": []string{"Decrypt"},
			"Constraints": map[string]any{"EncryptionContextSubset": pairs}},
	}
	fixed := map[string][]byte{}
	for operation, body := range bodies {
		if fixed[operation], err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	if made, err = call("Encrypt", fixed["Encrypt"]); err != nil {
		return nil, err
	}
	var sealed struct{ CiphertextBlob []byte }
	if err := json.Unmarshal(made, &sealed); err != nil {
		return nil, err
	}
	if fixed["Decrypt"], err = json.Marshal(map[string]any{"KeyId": id, "CiphertextBlob": sealed.CiphertextBlob, "EncryptionContext": pairs}); err != nil {
		return nil, err
	}
	fixed["ReEncrypt"], err = json.Marshal(map[string]any{"CiphertextBlob": sealed.CiphertextBlob, "SourceKeyId": id, "SourceEncryptionContext": pairs,
		"DestinationKeyId": id, "DestinationEncryptionContext": pairs})
	return fixed, err
}

// signed returns the header of a request of the customer's, good for minutes.
func (b *bench) signed(ctx context.Context, operation string, body []byte) (http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.kms.Fast, bytes.NewReader(body))
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

// forAWhile calls fn from some goroutines until the time is up or one fails.
func forAWhile(workers int, d time.Duration, fn func() error) (n int64, took time.Duration, err error) {
	var calls atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for time.Since(start) < d {
				if failure := fn(); failure != nil {
					once.Do(func() { err = failure })
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	return calls.Load(), time.Since(start), err
}
