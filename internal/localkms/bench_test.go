package localkms_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// call serves one request, with as little of a client as there can be.
func call(b *testing.B, h http.Handler, signed http.Header, body []byte) {
	req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	req.Header = signed
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if rec.Code != http.StatusOK {
		b.Errorf("answered %d %s", rec.Code, rec.Body)
	}
}

// crowded returns a KMS with two keys, each with many grants to the worker, and
// the context of one of them.
func crowded(b *testing.B) (h *localkms.KMS, from, to string, context map[string]string) {
	h = newKMS(b, localkms.Config{})
	from, to = newKey(b, h, brokerPolicy), newKey(b, h, brokerPolicy)
	for i := range 1000 {
		for _, key := range []string{from, to} {
			in := decryptGrant(key, worker)
			in.Operations = []types.GrantOperation{"ReEncryptFrom", "ReEncryptTo", "GenerateDataKeyWithoutPlaintext"}
			in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("keybroker:domain", fmt.Sprint("d-", i))}
			if _, err := as(h, registrar).CreateGrant(b.Context(), in); err != nil {
				b.Fatal(err)
			}
		}
	}
	return h, from, to, pairs("keybroker:domain", "d-500", "object", "o-1")
}

func encoded(b *testing.B, v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		b.Fatal(err)
	}
	return body
}

func BenchmarkGenerateDataKeyWithoutPlaintext(b *testing.B) {
	h, key, _, context := crowded(b)
	body := encoded(b, map[string]any{"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context})
	header := signed(b, "TrentService.GenerateDataKeyWithoutPlaintext", worker, body, time.Now()).Header
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			call(b, h, header, body)
		}
	})
}

func BenchmarkReEncrypt(b *testing.B) {
	h, from, to, context := crowded(b)
	blob := must[*kms.GenerateDataKeyWithoutPlaintextOutput](b)(as(h, worker).GenerateDataKeyWithoutPlaintext(b.Context(),
		&kms.GenerateDataKeyWithoutPlaintextInput{KeyId: aws.String(from), KeySpec: types.DataKeySpecAes256, EncryptionContext: context})).CiphertextBlob
	body := encoded(b, map[string]any{
		"CiphertextBlob": base64.StdEncoding.EncodeToString(blob), "SourceKeyId": from, "DestinationKeyId": to,
		"SourceEncryptionContext": context, "DestinationEncryptionContext": context,
	})
	header := signed(b, "TrentService.ReEncrypt", worker, body, time.Now()).Header
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			call(b, h, header, body)
		}
	})
}
