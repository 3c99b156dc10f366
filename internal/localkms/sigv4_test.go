package localkms

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The secret of all published examples.
const exampleSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

// Signed requests that AWS has published: the example of AWS General Reference,
// "Signature Version 4 signing process" (ListUsers), and cases of the AWS Signature
// Version 4 test suite, named as there (github.com/awslabs/aws-c-auth,
// tests/aws-signing-test-suite/v4).
func publishedSignatures() map[string]string {
	const token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/" +
		"qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL" +
		"64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
	request := func(line, service, signed, signature string, rest ...string) string {
		return line + " HTTP/1.1\nX-Amz-Date:20150830T123600Z\nAuthorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/" +
			service + "/aws4_request, SignedHeaders=" + signed + ", Signature=" + signature + "\n" + strings.Join(rest, "\n")
	}
	suite := func(line, signed, signature string, rest ...string) string {
		return request(line, "service", signed, signature, append([]string{"Host:example.amazonaws.com"}, rest...)...)
	}
	return map[string]string{
		"ListUsers": request("GET /?Action=ListUsers&Version=2010-05-08", "iam", "content-type;host;x-amz-date",
			"5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
			"Host:iam.amazonaws.com", "Content-Type:application/x-www-form-urlencoded; charset=utf-8", "", ""),
		"get-vanilla": suite("GET /", "host;x-amz-date",
			"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31", "", ""),
		"get-vanilla-query-order-key-case": suite("GET /?Param2=value2&Param1=value1", "host;x-amz-date",
			"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500", "", ""),
		"get-vanilla-utf8-query": suite("GET /?ሴ=bar", "host;x-amz-date",
			"2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04", "", ""),
		"get-header-value-trim": suite("GET /", "host;my-header1;my-header2;x-amz-date",
			"acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736", "My-Header1: value1", `My-Header2: "a   b   c"`, "", ""),
		"post-x-www-form-urlencoded-parameters": suite("POST /", "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
			"328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422",
			"Content-Type:application/x-www-form-urlencoded; charset=utf-8", "Content-Length:13",
			"x-amz-content-sha256:9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e", "", "Param1=value1"),
		"post-sts-header-before": suite("POST /", "host;x-amz-date;x-amz-security-token",
			"85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead", "X-Amz-Security-Token:"+token, "", ""),
	}
}

func readRequest(t *testing.T, text string) (*http.Request, []byte) {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(text, "\n", "\r\n"))))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, body
}

func TestPublishedSignatures(t *testing.T) {
	v := newVerifier()
	for name, text := range publishedSignatures() {
		t.Run(name, func(t *testing.T) {
			r, body := readRequest(t, text)
			signedAt := r.Header.Get("X-Amz-Date")
			s, err := parseSignature(r.Header.Get("Authorization"), signedAt)
			if err != nil {
				t.Fatal(err)
			}
			if !v.matches(&s, exampleSecret, r, body, signedAt) {
				t.Error("the published signature does not match")
			}
			if newVerifier().matches(&s, exampleSecret+"x", r, body, signedAt) {
				t.Error("another secret matches too")
			}
			if v.matches(&s, exampleSecret, r, append(body, 'x'), signedAt) {
				t.Error("another body matches too")
			}
			if v.matches(&s, exampleSecret, r, body, "20150830T123601Z") {
				t.Error("another time matches too")
			}
			for _, change := range []func(){
				func() { r.Host += "x" },
				func() { r.Method = "PUT" },
				func() { r.URL.Path = "/x" },
				func() { r.URL.RawQuery += "&x=" },
			} {
				r, body = readRequest(t, text)
				change()
				if v.matches(&s, exampleSecret, r, body, signedAt) {
					t.Errorf("matches as %s %s %s too", r.Method, r.Host, r.URL)
				}
			}
		})
	}
}

// The signing key of the ListUsers example is published as well.
func TestPublishedSigningKey(t *testing.T) {
	s := signature{keyID: "AKIDEXAMPLE", date: "20150830", region: "us-east-1", service: "iam"}
	if got := fmt.Sprintf("%x", s.signingKey(exampleSecret)); got != "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9" {
		t.Errorf("got %s", got)
	}
	v := newVerifier()
	if first := v.signing(&s, exampleSecret); v.signing(&s, exampleSecret) != first {
		t.Error("derived again for the same day")
	}
	for day := range 3 * maxSigningKeys {
		s.date = fmt.Sprint(day)
		v.signing(&s, exampleSecret)
	}
	if n := len(v.macs); n > maxSigningKeys {
		t.Errorf("keeps %d keys", n)
	}
}

// Texts: answers of AWS, published in aws-sdk-js issue 254 and aws-sdk-go issue
// 2194 (there with other limits).
func TestTimeOfSignature(t *testing.T) {
	now := time.Date(2014, 3, 25, 14, 52, 51, 0, time.UTC)
	for _, tc := range []struct {
		signedAt string
		skew     time.Duration
		want     string
	}{
		{"20140325T145251Z", 15 * time.Minute, ""},
		{"20140325T143751Z", 15 * time.Minute, ""},
		{"20140325T150751Z", 15 * time.Minute, ""},
		{"20140325T143453Z", 15 * time.Minute, "InvalidSignatureException: Signature expired: 20140325T143453Z is now earlier than 20140325T143751Z (20140325T145251Z - 15 min.)"},
		{"20140325T143750Z", 15 * time.Minute, "InvalidSignatureException: Signature expired: 20140325T143750Z is now earlier than 20140325T143751Z (20140325T145251Z - 15 min.)"},
		{"20140325T145752Z", 5 * time.Minute, "InvalidSignatureException: Signature not yet current: 20140325T145752Z is still later than 20140325T145751Z (20140325T145251Z + 5 min.)"},
		{"20010101T000000Z", -1, ""},
		{"2014-03-25T14:52:51Z", -1, "IncompleteSignatureException: Date must be in ISO-8601 'basic format'. Got '2014-03-25T14:52:51Z'. See http://en.wikipedia.org/wiki/ISO_8601"},
	} {
		got := ""
		if err := checkTime(tc.signedAt, now, tc.skew); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s within %s: got  %s\nwant %s", tc.signedAt, tc.skew, got, tc.want)
		}
	}
}

// What parses is what was signed, and nothing panics on the way to it.
func FuzzAuthorization(f *testing.F) {
	for _, text := range publishedSignatures() {
		for line := range strings.Lines(text) {
			if header, ok := strings.CutPrefix(line, "Authorization:"); ok {
				f.Add(strings.TrimSpace(header), "a=b&c")
			}
		}
	}
	f.Add("AWS4-HMAC-SHA256 Credential=/////,SignedHeaders=;;,Signature=x", "%zz=%41&&=")
	f.Fuzz(func(t *testing.T, header, query string) {
		s, err := parseSignature(header, "20150830T123600Z")
		if err != nil {
			return
		}
		if !strings.Contains(header, "Credential="+s.keyID+"/"+s.scope) {
			t.Errorf("%q was read as key %q, scope %q", header, s.keyID, s.scope)
		}
		r := &http.Request{Method: "POST", Header: http.Header{}, URL: &url.URL{Path: "/", RawQuery: query}}
		if newVerifier().matches(&s, exampleSecret, r, nil, "20150830T123600Z") {
			t.Errorf("%q matches", header)
		}
	})
}

// BenchmarkAuthenticate is what the verification of a signature costs, on a request
// of the size of a ReEncrypt.
func BenchmarkAuthenticate(b *testing.B) {
	k, err := New(Config{
		Principals: []Principal{{ARN: "arn:aws:iam::111122223333:role/a", AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: exampleSecret}},
		Now:        time.Now, ClockSkew: -1,
	})
	if err != nil {
		b.Fatal(err)
	}
	body := bytes.Repeat([]byte("x"), 700)
	hr := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	hr.Header = http.Header{
		"X-Amz-Date": {"20150830T123600Z"}, "X-Amz-Target": {"TrentService.ReEncrypt"}, "Content-Type": {contentType},
		"Amz-Sdk-Invocation-Id": {newUUID()}, "Amz-Sdk-Request": {"attempt=1; max=3"}, "Accept-Encoding": {"identity"},
	}
	sign := func(signature string) {
		hr.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request, "+
			"SignedHeaders=accept-encoding;amz-sdk-invocation-id;amz-sdk-request;content-length;content-type;host;x-amz-date;x-amz-target, Signature="+signature)
	}
	sign("0")
	s, err := parseSignature(hr.Header.Get("Authorization"), "20150830T123600Z")
	if err != nil {
		b.Fatal(err)
	}
	sign(string(k.verifier.appendSignature(nil, &s, exampleSecret, hr, body, "20150830T123600Z")))
	b.ReportAllocs()
	for b.Loop() {
		if err := k.authenticate(&request{now: time.Now()}, hr, body, kmsService); err != nil {
			b.Fatal(err)
		}
	}
}
