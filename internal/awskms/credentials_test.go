package awskms_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// ailingSTS refuses while refusal is set.
type ailingSTS struct {
	fakeSTS
	status  int
	refusal string
}

func (s *ailingSTS) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.refusal == "" {
		return s.fakeSTS.RoundTrip(r)
	}
	if err := r.Body.Close(); err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: s.status, Request: r, Header: http.Header{"Content-Type": {"text/xml"}}, Body: io.NopCloser(strings.NewReader(s.refusal)),
	}, nil
}

// quotedToken stands for what a message of STS may quote of its request.
const quotedToken = "eyJ0b2tlbiI6MX0"

// stsRefusal is an error answer of STS: of what it says, AccessDenied alone quotes
// nothing.
func stsRefusal(code string) string {
	message := "Value '" + quotedToken + "' at 'webIdentityToken' is bad"
	if code == "AccessDenied" {
		message = notAuthorized
	}
	return `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>` + code +
		`</Code><Message>` + message + `</Message></Error><RequestId>9c3f1f4e-of-sts</RequestId></ErrorResponse>`
}

const notAuthorized = "User: arn:aws:iam::999999999999:user/u is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::999999999999:role/worker"

// Whatever STS says is about the broker, never about a customer's key or a row:
// the codes are of the AWS STS API Reference, the Errors of AssumeRole and of
// AssumeRoleWithWebIdentity, and Common Error Types; the last ones are nobody's.
func TestCredentialsThatSTSRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  int
		refusal string
	}{
		{"the trust policy is broken", http.StatusForbidden, stsRefusal("AccessDenied")},
		{"throttled", http.StatusBadRequest, stsRefusal("Throttling")},
		{"the token is no good", http.StatusBadRequest, stsRefusal("InvalidIdentityToken")},
		{"the identity provider is away", http.StatusBadRequest, stsRefusal("IDPCommunicationError")},
		{"the Region is off", http.StatusForbidden, stsRefusal("RegionDisabledException")},
		{"the request is wrong", http.StatusBadRequest, stsRefusal("ValidationError")},
		{"a code of KMS's", http.StatusBadRequest, stsRefusal("InvalidCiphertextException")},
		{"a code that nobody knows", http.StatusTeapot, stsRefusal("SomethingNew")},
		{"no code", http.StatusBadGateway, "<html>not STS</html>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noAWS(t, "")
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
			synctest.Test(t, func(t *testing.T) { // the SDK waits before it asks STS again
				for _, class := range []pacer.Class{pacer.Foreground, pacer.Background} {
					sts := &ailingSTS{status: c.status, refusal: c.refusal}
					roles, err := awskms.AssumedRoles(t.Context(), assumeFrom(sts))
					if err != nil {
						t.Fatal(err)
					}
					cfg := config(t, &trap{})
					var log bytes.Buffer
					cfg.Logger = slog.New(slog.NewJSONHandler(&log, nil))
					cfg.Registrar, cfg.Worker = roles.Registrar, roles.Worker
					k := open(t, cfg, class)
					for operation, ask := range map[string]func() error{
						"ReEncrypt":   func() error { return reEncrypt(t.Context(), k, keyIn(homeRegion)) },
						"DescribeKey": func() error { _, err := k.DescribeKey(t.Context(), string(keyIn(homeRegion))); return err },
					} {
						var got *broker.KMSError
						if err := ask(); !errors.As(err, &got) || got.Class != broker.KMSUnavailable || got.Code != "CredentialsUnavailable" || got.RequestID != "" {
							t.Errorf("%s %v: %#v, want UNAVAILABLE, CredentialsUnavailable, and no request id of KMS", operation, class, got)
						} else if text := got.Err.Error(); strings.Contains(text, quotedToken) || strings.Contains(c.refusal, notAuthorized) != strings.Contains(text, notAuthorized) {
							t.Errorf("%s %v: the log would say: %v", operation, class, got.Err)
						}
					}
					sts.refusal = ""
					if err := reEncrypt(t.Context(), k, keyIn(homeRegion)); !errors.Is(err, errTrap) {
						t.Errorf("%v: STS answers again, and the call ends in %v", class, err)
					}
					for said, want := range map[string]int{`"msg":"no credentials","role":"worker"`: 1, `"msg":"no credentials","role":"registrar"`: 1,
						`"msg":"credentials are back","role":"worker"`: 1, quotedToken: 0} {
						if got := strings.Count(log.String(), said); got != want {
							t.Errorf("%v: the log says %s %d times, want %d:\n%s", class, said, got, want, &log)
						}
					}
				}
			})
		})
	}
}

// A caller who leaves while STS is asked has left: that is no fault of the
// credentials.
func TestCredentialsThatNobodyWaitsFor(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	cfg := config(t, &trap{})
	cfg.Worker = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		leave()
		return aws.Credentials{}, &smithy.GenericAPIError{Code: "AccessDenied"}
	})
	err := reEncrypt(ctx, open(t, cfg, pacer.Background), keyIn(homeRegion))
	if !errors.Is(err, context.Canceled) || broker.ClassOf(err) != broker.KMSUnavailable {
		t.Errorf("got %v", err)
	}
}
