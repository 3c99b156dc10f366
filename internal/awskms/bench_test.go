package awskms_test

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
)

// BenchmarkReEncrypt sets the adapter beside the SDK's own client, once with the
// embedded KMS behind both and once with a canned answer, which leaves the
// client's own cost.
//
//	go test -run '^$' -bench ReEncrypt -benchmem ./internal/awskms
func BenchmarkReEncrypt(b *testing.B) {
	l := newLocal(b, 0, nil)
	rt := localkms.RoundTripper(l)
	key := must[*kms.CreateKeyOutput](b)(sdk(rt, "AKIACUSTOMER").CreateKey(b.Context(), &kms.CreateKeyInput{
		Policy: aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:root","` +
			workerRole + `"]},"Action":"kms:*","Resource":"*"}]}`),
	}))
	arn := broker.KeyARN(*key.KeyMetadata.Arn)
	adapter := open(b, config(b, rt), pacer.Background)
	pairs := broker.Context{reservedKey: "01JC", "object": "4711"}
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
		client := sdk(wire.rt, "AKIAWORKER")
		b.Run("sdk/"+wire.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				in := bare
				if _, err := client.ReEncrypt(b.Context(), &in); err != nil {
					b.Fatal(err)
				}
			}
		})
		plain := open(b, cfg, pacer.Background)
		cfg.Now, cfg.Observe = time.Now, func(string, broker.KMSClass, time.Duration) {}
		observed := open(b, cfg, pacer.Background)
		b.Run("adapter/"+wire.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := plain.ReEncrypt(b.Context(), request); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("observed/"+wire.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := observed.ReEncrypt(b.Context(), request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

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
