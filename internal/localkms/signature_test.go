package localkms_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/keybroker/keybroker/internal/localkms"
)

// signed returns a request of a principal, or of nobody.
func signed(t testing.TB, operation, principal string, body []byte, at time.Time) *http.Request {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", operation)
	if principal != "" {
		credentials := aws.Credentials{AccessKeyID: accessKeyOf(principal), SecretAccessKey: secretOf(principal)}
		sum := sha256.Sum256(body)
		if err := v4.NewSigner().SignHTTP(t.Context(), credentials, req, hex.EncodeToString(sum[:]), "kms", region, at); err != nil {
			t.Fatal(err)
		}
	}
	return req
}

// A request that was altered after it was signed, or signed for something else, is
// refused. Texts: IAM User Guide, "Troubleshoot Signature Version 4 signing", and
// answers of AWS published in aws-sdk-js-v3 issue 6400 (AWS KMS, 5 minutes),
// aws-sdk-ruby issue 431 and others.
func TestSignature(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 890e6, time.UTC)
	h := newKMS(t, localkms.Config{Now: func() time.Time { return now }, ClockSkew: 5 * time.Minute})
	const mismatch = "The request signature we calculated does not match the signature you provided. " +
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	authorization := func(old, new string) func(*http.Request) {
		return func(r *http.Request) {
			header := r.Header.Get("Authorization")
			if !strings.Contains(header, old) {
				t.Errorf("%q is not in %q", old, header)
			}
			r.Header.Set("Authorization", strings.Replace(header, old, new, 1))
		}
	}
	set := func(header, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(header, value) }
	}
	for name, tc := range map[string]struct {
		at     time.Duration
		change func(*http.Request)
		want   refusal
	}{
		"as signed":          {0, func(*http.Request) {}, refusal{}},
		"five minutes early": {-5 * time.Minute, func(*http.Request) {}, refusal{}},
		"an unsigned header": {0, set("User-Agent", "x"), refusal{}},
		"too early": {-5*time.Minute - time.Second, func(*http.Request) {}, refusal{"InvalidSignatureException",
			"Signature expired: 20260304T050106Z is now earlier than 20260304T050107Z (20260304T050607Z - 5 min.)"}},
		"too late": {6 * time.Minute, func(*http.Request) {}, refusal{"InvalidSignatureException",
			"Signature not yet current: 20260304T051207Z is still later than 20260304T051107Z (20260304T050607Z + 5 min.)"}},
		"another target": {0, set("X-Amz-Target", "TrentService.ListKeys"), refusal{"InvalidSignatureException", mismatch}},
		"another host":   {0, func(r *http.Request) { r.Host = "other" }, refusal{"InvalidSignatureException", mismatch}},
		"another body": {0, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"Limit":1}`)) },
			refusal{"InvalidSignatureException", mismatch}},
		"another region":    {0, authorization(region, "us-east-1"), refusal{"InvalidSignatureException", mismatch}},
		"another principal": {0, authorization(accessKeyOf(admin), accessKeyOf(worker)), refusal{"InvalidSignatureException", mismatch}},
		"no such region":    {0, authorization(region, "us_west"), refusal{"InvalidSignatureException", "Credential should be scoped to a valid region, not 'us_west'."}},
		"another service":   {0, authorization("/kms/", "/s3/"), refusal{"InvalidSignatureException", "Credential should be scoped to correct service: 'kms'."}},
		"another end":       {0, authorization("aws4_request", "aws5_request"), refusal{"InvalidSignatureException", "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'."}},
		"another day": {0, authorization("/20260304/", "/20260305/"), refusal{"InvalidSignatureException",
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20260305' != '20260304', from '20260304T050607Z'."}},
		"host is not signed": {0, authorization("host;", ""), refusal{"InvalidSignatureException",
			"'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."}},
		"short scope": {0, authorization("/"+region+"/kms/", "/"), refusal{"IncompleteSignatureException",
			"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '" + accessKeyOf(admin) + "/20260304/aws4_request'"}},
		"other scheme": {0, set("Authorization", "Basic Credential=x"), refusal{"IncompleteSignatureException",
			"Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. " +
				"Authorization header requires 'SignedHeaders' parameter. " +
				"(Hashed with SHA-256 and encoded with Base64) Authorization=" + base64Sum("Basic Credential=x")}},
		"a token with a permanent key": {0, set("X-Amz-Security-Token", "x"),
			refusal{"UnrecognizedClientException", "The security token included in the request is invalid."}},
	} {
		t.Run(name, func(t *testing.T) {
			req := signed(t, "TrentService.ListAliases", admin, []byte("{}"), now.Add(tc.at))
			tc.change(req)
			a := send(t, h, req)
			if tc.want.code != "" {
				wantAnswer(t, a, tc.want)
			} else if a.status != http.StatusOK {
				t.Errorf("answered %d %s", a.status, a.body)
			}
		})
	}
	req := signed(t, "TrentService.ListAliases", admin, []byte("{}"), now)
	header := req.Header.Get("Authorization")
	req.Header.Del("X-Amz-Date")
	wantAnswer(t, send(t, h, req), refusal{"IncompleteSignatureException",
		"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. " +
			"(Hashed with SHA-256 and encoded with Base64) Authorization=" + base64Sum(header)})
}

func base64Sum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.StdEncoding.EncodeToString(sum[:])
}
