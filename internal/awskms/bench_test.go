package awskms_test

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
)

// BenchmarkReEncrypt sets the adapter beside the SDK's own client, as it comes
// and with the adapter's transport, once with the embedded KMS behind them and
// once with a canned answer, which leaves the client's own cost.
//
//	go test -run '^$' -bench ReEncrypt ./internal/awskms
func BenchmarkReEncrypt(b *testing.B) {
	l := newLocal(b, 0, nil)
	rt := localkms.RoundTripper(l)
	key := must[*kms.CreateKeyOutput](b)(sdk(rt, "AKIACUSTOMER").CreateKey(b.Context(), &kms.CreateKeyInput{
		Policy: aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:root","` +
			workerRole + `"]},"Action":"kms:*","Resource":"*"}]}`),
	}))
	arn := broker.KeyARN(*key.KeyMetadata.Arn)
	adapter := open(b, config(b, rt), pacer.Background)
	pairs := broker.Context{reservedKey: anyUID, "object": "4711"}
	wrapped := must[broker.WrappedKey](b)(adapter.GenerateDataKeyWithoutPlaintext(b.Context(), broker.GenerateDataKey{
		Key: arn, KeySpec: "AES_256", Context: pairs,
	}))
	request := broker.ReEncrypt{
		Ciphertext: wrapped.Ciphertext, SourceKey: arn, SourceContext: pairs, DestinationKey: arn, DestinationContext: pairs,
	}
	bare := kms.ReEncryptInput{
		CiphertextBlob: wrapped.Ciphertext, SourceKeyId: aws.String(string(arn)), SourceEncryptionContext: pairs,
		DestinationKeyId: aws.String(string(arn)), DestinationEncryptionContext: pairs,
	}
	answer := record(b, rt, &bare)

	for _, wire := range []struct {
		name string
		rt   http.RoundTripper
	}{{"localkms", rt}, {"canned", canned{answer}}} {
		cfg := config(b, wire.rt)
		cfg.Now, cfg.Observe = time.Now, func(string, broker.KMSClass, time.Duration) {}
		adapter, client := open(b, cfg, pacer.Background), sdk(wire.rt, "AKIAWORKER")
		plain := kms.New(client.Options(), func(o *kms.Options) { o.HTTPClient = roundTrip{wire.rt} })
		through := func(client *kms.Client) func() error {
			return func() error {
				in := bare
				_, err := client.ReEncrypt(b.Context(), &in)
				return err
			}
		}
		b.Run(wire.name, func(b *testing.B) {
			compare(b, []string{"sdk", "sdk-plain", "adapter"}, through(client), through(plain), func() error {
				_, err := adapter.ReEncrypt(b.Context(), request)
				return err
			})
		})
	}
}

// compare runs the calls in turn, so that all meet the same noise, and reports
// the median of each, and by how much the last exceeds the one before it.
func compare(b *testing.B, names []string, calls ...func() error) {
	took := make([][]float64, len(calls))
	for b.Loop() {
		for i, call := range calls {
			start := time.Now()
			if err := call(); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], float64(time.Since(start)))
		}
	}
	medians := make([]float64, len(calls))
	for i := range calls {
		slices.Sort(took[i])
		medians[i] = took[i][len(took[i])/2]
		b.ReportMetric(medians[i], names[i]+"-ns")
	}
	b.ReportMetric(medians[len(calls)-1]-medians[len(calls)-2], "own-ns")
	b.ReportMetric(0, "ns/op") // of all together: says nothing
}

// roundTrip is the adapter's short cut around http.Client, for the bare client.
type roundTrip struct{ rt http.RoundTripper }

func (r roundTrip) Do(req *http.Request) (*http.Response, error) { return r.rt.RoundTrip(req) }

// record gives the body of KMS's answer to one request.
func record(b *testing.B, rt http.RoundTripper, in *kms.ReEncryptInput) []byte {
	b.Helper()
	tape := &tape{next: rt}
	if _, err := sdk(tape, "AKIAWORKER").ReEncrypt(b.Context(), in); err != nil {
		b.Fatal(err)
	}
	return tape.body
}

type tape struct {
	next http.RoundTripper
	body []byte
}

func (t *tape) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	t.body, err = io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(t.body))
	return resp, err
}

// canned answers everything with one body.
type canned struct{ body []byte }

func (c canned) RoundTrip(r *http.Request) (*http.Response, error) {
	_, _ = io.Copy(io.Discard, r.Body)
	return &http.Response{
		Status: "200 OK", StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type":     {"application/x-amz-json-1.1"},
			"Content-Length":   {strconv.Itoa(len(c.body))},
			"X-Amzn-Requestid": {"00000000-0000-4000-8000-000000000000"},
		},
		ContentLength: int64(len(c.body)), Body: io.NopCloser(bytes.NewReader(c.body)), Request: r,
	}, nil
}
