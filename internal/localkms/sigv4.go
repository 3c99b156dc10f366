package localkms

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Signature Version 4, as IAM User Guide, "Create a signed AWS API request", has
// it: in the Authorization header, with the time in X-Amz-Date. Messages: IAM User
// Guide, "Troubleshoot Signature Version 4 signing", and published answers.

// The services of a credential scope that are served here.
const (
	kmsService = "kms"
	stsService = "sts"
)

const (
	signingAlgorithm = "AWS4-HMAC-SHA256"
	signingEnd       = "aws4_request"
	signingTime      = "20060102T150405Z" // ISO 8601, basic format
)

// How far the time of a signature may be from ours. Source: answers of AWS KMS and
// STS ("Signature expired: … is now earlier than … (… - 5 min.)"), published in
// aws-sdk-js-v3 issue 6400 and many others.
const (
	kmsClockSkew = 5 * time.Minute
	stsClockSkew = 15 * time.Minute
)

// signature is an Authorization header, taken apart.
type signature struct {
	keyID         string
	scope         string // date/region/service/aws4_request, as signed
	date          string // of the scope, yyyymmdd
	region        string
	service       string
	signedHeaders string // names in lower case, with semicolons between them
	hex           string
}

// parseSignature takes a header apart:
//
//	AWS4-HMAC-SHA256 Credential=KEYID/20261121/us-east-1/kms/aws4_request, SignedHeaders=host;x-amz-date, Signature=0123…
func parseSignature(header, time string) (signature, error) {
	if header == "" {
		return signature{}, fault(codeMissingAuthentication, "Missing Authentication Token")
	}
	var s signature
	var credential string
	if fields, ok := strings.CutPrefix(header, signingAlgorithm+" "); ok {
		for field := range strings.SplitSeq(fields, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
			switch name {
			case "Credential":
				credential = value
			case "SignedHeaders":
				s.signedHeaders = value
			case "Signature":
				s.hex = value
			}
		}
	}
	if err := missingFields(header, credential, s, time); err != nil {
		return signature{}, err
	}
	keyID, scope, _ := strings.Cut(credential, "/")
	part := strings.Split(scope, "/")
	if len(part) != 4 {
		return signature{}, faultf(codeIncompleteSignature, "Credential must have exactly 5 slash-delimited elements, e.g. "+
			"keyid/date/region/service/term, got '%s'", credential)
	}
	s.keyID, s.scope, s.date, s.region, s.service = keyID, scope, part[0], part[1], part[2]
	if end := part[3]; end != signingEnd {
		return signature{}, faultf(codeInvalidSignature, "Credential should be scoped with a valid terminator: '%s', not '%s'.", signingEnd, end)
	}
	return s, nil
}

// missingFields names what a header lacks. Like AWS it repeats the header only as
// a hash.
func missingFields(header, credential string, s signature, time string) error {
	var missing []string
	for _, field := range []struct{ name, value string }{
		{"Credential", credential}, {"Signature", s.hex}, {"SignedHeaders", s.signedHeaders},
	} {
		if field.value == "" {
			missing = append(missing, "Authorization header requires '"+field.name+"' parameter.")
		}
	}
	if time == "" {
		missing = append(missing, "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	if missing == nil {
		return nil
	}
	sum := sha256.Sum256([]byte(header))
	return faultf(codeIncompleteSignature, "%s (Hashed with SHA-256 and encoded with Base64) Authorization=%s",
		strings.Join(missing, " "), base64.StdEncoding.EncodeToString(sum[:]))
}

// checkScope checks what the signature was made for: a service here, a region that
// could be one, and the day that the request says.
func (s *signature) checkScope(service, signedAt string) error {
	if !slices.Contains(strings.Split(s.signedHeaders, ";"), "host") {
		return fault(codeInvalidSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	if s.region == "" || len(s.region) > maxRegion || strings.Trim(s.region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return faultf(codeInvalidSignature, "Credential should be scoped to a valid region, not '%s'.", s.region)
	}
	if s.service != service {
		return faultf(codeInvalidSignature, "Credential should be scoped to correct service: '%s'.", service)
	}
	if day, _, _ := strings.Cut(signedAt, "T"); s.date != day {
		return faultf(codeInvalidSignature, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "+
			"'%s' != '%s', from '%s'.", s.date, day, signedAt)
	}
	return nil
}

// checkTime refuses a signature of another time than ours. A negative skew
// refuses none.
func checkTime(signedAt string, now time.Time, skew time.Duration) error {
	at, err := time.Parse(signingTime, signedAt)
	if err != nil {
		return faultf(codeIncompleteSignature, "Date must be in ISO-8601 'basic format'. Got '%s'. "+
			"See http://en.wikipedia.org/wiki/ISO_8601", signedAt)
	}
	now = now.UTC()
	switch first, last := now.Add(-skew), now.Add(skew); {
	case skew < 0:
	case at.Before(first.Truncate(time.Second)):
		return faultf(codeInvalidSignature, "Signature expired: %s is now earlier than %s (%s - %g min.)",
			signedAt, first.Format(signingTime), now.Format(signingTime), skew.Minutes())
	case at.After(last):
		return faultf(codeInvalidSignature, "Signature not yet current: %s is still later than %s (%s + %g min.)",
			signedAt, last.Format(signingTime), now.Format(signingTime), skew.Minutes())
	}
	return nil
}

// verifier computes signatures. It may be used concurrently.
type verifier struct {
	buffers sync.Pool // of *bytes.Buffer

	mu   sync.RWMutex
	macs map[keyScope]*sync.Pool // of hash.Hash: HMACs under derived signing keys; see maxSigningKeys
}

// keyScope is what a signing key is derived for. The access key id stands for its
// secret, which never changes.
type keyScope struct{ keyID, date, region, service string }

// maxSigningKeys bounds the derived keys that are kept. One more, and all are
// forgotten: a key is needed for a day, and derived in microseconds.
const maxSigningKeys = 1024

func newVerifier() *verifier {
	return &verifier{
		buffers: sync.Pool{New: func() any { return new(bytes.Buffer) }},
		macs:    map[keyScope]*sync.Pool{},
	}
}

// matches reports whether a request was signed with a secret, in a time that does
// not tell how much of the signature is right.
func (v *verifier) matches(s *signature, secret string, hr *http.Request, body []byte, signedAt string) bool {
	var want [2 * sha256.Size]byte
	return hmac.Equal(v.appendSignature(want[:0], s, secret, hr, body, signedAt), []byte(s.hex))
}

// appendSignature appends the signature that a request should have, in hexadecimal
// digits.
func (v *verifier) appendSignature(to []byte, s *signature, secret string, hr *http.Request, body []byte, signedAt string) []byte {
	b := v.buffers.Get().(*bytes.Buffer)
	defer v.buffers.Put(b)
	b.Reset()
	writeCanonicalRequest(b, s, hr, body)
	request := sha256.Sum256(b.Bytes())
	b.Reset()
	b.WriteString(signingAlgorithm + "\n")
	b.WriteString(signedAt)
	b.WriteByte('\n')
	b.WriteString(s.scope)
	b.WriteByte('\n')
	writeHex(b, request[:])
	macs := v.signing(s, secret)
	mac := macs.Get().(hash.Hash)
	defer macs.Put(mac)
	mac.Reset()
	mac.Write(b.Bytes())
	return hex.AppendEncode(to, mac.Sum(b.AvailableBuffer()))
}

// signing returns HMACs under the signing key of a signature.
func (v *verifier) signing(s *signature, secret string) *sync.Pool {
	scope := keyScope{s.keyID, s.date, s.region, s.service}
	v.mu.RLock()
	macs := v.macs[scope]
	v.mu.RUnlock()
	if macs != nil {
		return macs
	}
	key := s.signingKey(secret)
	macs = &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.macs) >= maxSigningKeys {
		clear(v.macs)
	}
	v.macs[scope] = macs
	return macs
}

func (s *signature) signingKey(secret string) []byte {
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, signingEnd} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return key
}

// writeCanonicalRequest writes what was signed. The hash of the body is ours,
// whatever X-Amz-Content-Sha256 says.
func writeCanonicalRequest(b *bytes.Buffer, s *signature, hr *http.Request, body []byte) {
	b.WriteString(hr.Method)
	b.WriteByte('\n')
	path := hr.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	writeEscaped(b, path, "/")
	b.WriteByte('\n')
	writeCanonicalQuery(b, hr.URL.RawQuery)
	b.WriteByte('\n')
	for name := range strings.SplitSeq(s.signedHeaders, ";") {
		b.WriteString(name)
		b.WriteByte(':')
		writeHeader(b, name, hr)
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	b.WriteString(s.signedHeaders)
	b.WriteByte('\n')
	sum := sha256.Sum256(body)
	writeHex(b, sum[:])
}

// writeHeader writes the canonical value of a header. Go keeps two of them out of
// the map.
func writeHeader(b *bytes.Buffer, name string, hr *http.Request) {
	switch name {
	case "host":
		b.WriteString(hr.Host)
	case "content-length":
		b.Write(strconv.AppendInt(b.AvailableBuffer(), hr.ContentLength, 10))
	default:
		for i, value := range headerValues(hr.Header, name) {
			if i > 0 {
				b.WriteByte(',')
			}
			writeTrimmed(b, value)
		}
	}
}

// headerValues is http.Header.Values for a name in lower case, without garbage.
func headerValues(header http.Header, name string) []string {
	var canonical [64]byte
	if len(name) > len(canonical) {
		return header.Values(name)
	}
	start := true // of a word
	for i := range len(name) {
		c := name[i]
		if start && 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		canonical[i], start = c, c == '-'
	}
	return header[string(canonical[:len(name)])]
}

// writeTrimmed leaves out the spaces around a value, and all but one of those in a
// row.
func writeTrimmed(b *bytes.Buffer, value string) {
	value = strings.TrimSpace(value)
	if !strings.Contains(value, "  ") {
		b.WriteString(value)
		return
	}
	for i := range len(value) {
		if value[i] != ' ' || value[i-1] != ' ' { // the first is no space
			b.WriteByte(value[i])
		}
	}
}

// writeCanonicalQuery writes the parameters of a query by name, then value, each
// escaped.
func writeCanonicalQuery(b *bytes.Buffer, query string) {
	if query == "" {
		return
	}
	type parameter struct{ name, value string }
	var parameters []parameter
	for field := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(field, "=")
		parameters = append(parameters, parameter{escaped(name), escaped(value)})
	}
	slices.SortFunc(parameters, func(a, b parameter) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.value, b.value))
	})
	for i, p := range parameters {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.name + "=" + p.value)
	}
}

// escaped writes a part of a query anew, whichever way it was escaped.
func escaped(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		s = plain
	}
	var b bytes.Buffer
	writeEscaped(&b, s, "")
	return b.String()
}

// writeEscaped escapes every byte but the unreserved ones of RFC 3986 and those of
// keep.
func writeEscaped(b *bytes.Buffer, s, keep string) {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			strings.IndexByte("-._~", c) >= 0, strings.IndexByte(keep, c) >= 0:
			b.WriteByte(c)
		default:
			const digits = "0123456789ABCDEF"
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
}

func writeHex(b *bytes.Buffer, bytes []byte) {
	b.Write(hex.AppendEncode(b.AvailableBuffer(), bytes))
}
