package awskms_test

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/awskms"
)

func TestStaticRoles(t *testing.T) {
	roles := awskms.StaticRoles(awskms.AccessKey{ID: "AKIAR", Secret: "r"}, awskms.AccessKey{ID: "AKIAW", Secret: "w"})
	for want, role := range map[string]aws.CredentialsProvider{"AKIAR/r": roles.Registrar, "AKIAW/w": roles.Worker} {
		c, err := role.Retrieve(t.Context())
		if got := c.AccessKeyID + "/" + c.SecretAccessKey; err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

// fakeSTS gives credentials that name what was asked for.
type fakeSTS struct {
	hosts []string
	calls []url.Values
	// The access key that each call was signed with; empty for none.
	signers []string
}

func (f *fakeSTS) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	_, signer, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	signer, _, _ = strings.Cut(signer, "/")
	f.hosts, f.calls, f.signers = append(f.hosts, r.URL.Scheme+"://"+r.URL.Host), append(f.calls, form), append(f.signers, signer)
	_, role, _ := strings.Cut(form.Get("RoleArn"), "/")
	action := form.Get("Action")
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {"text/xml"}},
		Body: io.NopCloser(strings.NewReader(`<` + action + `Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><` + action + `Result>` +
			`<AssumedRoleUser><AssumedRoleId>A:s</AssumedRoleId><Arn>arn:aws:sts::999999999999:assumed-role/` + role + `/s</Arn></AssumedRoleUser>` +
			`<Credentials><AccessKeyId>ASIA-` + role + `</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>` +
			`<Expiration>` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `</Expiration></Credentials></` + action + `Result></` + action + `Response>`)),
	}, nil
}

func assumeFrom(wire http.RoundTripper) awskms.AssumeRoles {
	return awskms.AssumeRoles{
		RegistrarRole: "arn:aws:iam::999999999999:role/registrar", WorkerRole: "arn:aws:iam::999999999999:role/worker",
		SessionName: "keybroker-test", Region: "eu-central-1", Transport: wire,
	}
}

// noAWS takes away what the machine says about AWS, and writes a config file.
func noAWS(t *testing.T, file string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", path)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("HTTPS_PROXY", "http://hijacker.example")
}

func TestAssumedRoles(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("web-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file string
		env        map[string]string
		profile    string
		// Action and signer of each call to STS, in order.
		want []string
	}{
		{"access key", "", map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-2"}, "",
			[]string{"AssumeRole registrar AKIAENV", "AssumeRole worker AKIAENV"}},
		{"profile", "[profile p]\nregion = us-east-2\naws_access_key_id = AKIAFILE\naws_secret_access_key = s\n", nil, "p",
			[]string{"AssumeRole registrar AKIAFILE", "AssumeRole worker AKIAFILE"}},
		{"web identity", "", map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": "arn:aws:iam::999999999999:role/pod"}, "",
			[]string{"AssumeRoleWithWebIdentity pod ", "AssumeRole registrar ASIA-pod", "AssumeRole worker ASIA-pod"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noAWS(t, c.file)
			for name, value := range c.env {
				t.Setenv(name, value)
			}
			wire := &fakeSTS{}
			config := assumeFrom(wire)
			config.Profile = c.profile
			roles, err := awskms.AssumedRoles(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			if len(wire.calls) != 0 {
				t.Error("STS is asked before anybody needs a role")
			}
			for range 2 { // the second time from memory
				for _, role := range []struct {
					want string
					as   aws.CredentialsProvider
				}{{"ASIA-registrar", roles.Registrar}, {"ASIA-worker", roles.Worker}} {
					if got, err := role.as.Retrieve(t.Context()); err != nil || got.AccessKeyID != role.want {
						t.Errorf("got %s, %v, want %s", got.AccessKeyID, err, role.want)
					}
				}
			}
			var got []string
			for i, call := range wire.calls {
				_, role, _ := strings.Cut(call.Get("RoleArn"), "/")
				got = append(got, call.Get("Action")+" "+role+" "+wire.signers[i])
				if wire.hosts[i] != "https://sts.eu-central-1.amazonaws.com" {
					t.Errorf("asked %s", wire.hosts[i])
				}
				if call.Get("Action") == "AssumeRole" && call.Get("RoleSessionName") != "keybroker-test" {
					t.Errorf("session %q", call.Get("RoleSessionName"))
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("calls of STS (-want +got)\n%s", diff)
			}
		})
	}
}

// FIPS is for STS as well (AWS General Reference, AWS STS endpoints and quotas):
// for the roles, and for the web identity that assumes them.
func TestAssumedRolesFIPS(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("web-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	noAWS(t, "")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::999999999999:role/pod")
	wire := &fakeSTS{}
	config := assumeFrom(wire)
	config.Region, config.FIPS = "us-west-2", true
	roles, err := awskms.AssumedRoles(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := roles.Worker.Retrieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	const fips = "https://sts-fips.us-west-2.amazonaws.com"
	if diff := cmp.Diff([]string{fips, fips}, wire.hosts); diff != "" {
		t.Errorf("asked (-want +got)\n%s", diff)
	}
}

// TestAssumedRolesNoEndpoint: neither environment nor files lead the calls for
// credentials elsewhere (T19).
func TestAssumedRolesNoEndpoint(t *testing.T) {
	const keys = "aws_access_key_id = AKIAFILE\naws_secret_access_key = s\n"
	for _, c := range []struct{ name, file, env string }{
		{"of all", "", "AWS_ENDPOINT_URL"},
		{"of STS", "", "AWS_ENDPOINT_URL_STS"},
		{"of SSO OIDC", "", "AWS_ENDPOINT_URL_SSO_OIDC"},
		{"of all, in a file", "[default]\nendpoint_url = http://hijacker.example\n" + keys, ""},
		{"of STS, in a file", "[default]\nservices = s\n" + keys + "[services s]\nsts =\n  endpoint_url = http://hijacker.example\n", ""},
		{"of SSO, in a file", "[default]\nservices = s\n" + keys + "[services s]\nsso =\n  endpoint_url = http://hijacker.example\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			noAWS(t, c.file)
			if c.env != "" {
				t.Setenv(c.env, "http://hijacker.example")
			}
			if _, err := awskms.AssumedRoles(t.Context(), assumeFrom(&fakeSTS{})); err == nil || !strings.Contains(err.Error(), "endpoint") {
				t.Errorf("got %v, want a refusal of the endpoint", err)
			}
		})
	}
}

func TestAssumedRolesFaults(t *testing.T) {
	noAWS(t, "")
	for name, change := range map[string]func(*awskms.AssumeRoles){
		"no registrar": func(c *awskms.AssumeRoles) { c.RegistrarRole = "" },
		"no worker":    func(c *awskms.AssumeRoles) { c.WorkerRole = "" },
		"no session":   func(c *awskms.AssumeRoles) { c.SessionName = "" },
		"no Region":    func(c *awskms.AssumeRoles) { c.Region = "" },
		"a host":       func(c *awskms.AssumeRoles) { c.Region = "evil.example/" },
		"no profile":   func(c *awskms.AssumeRoles) { c.Profile = "absent" },
	} {
		config := assumeFrom(&fakeSTS{})
		change(&config)
		if _, err := awskms.AssumedRoles(t.Context(), config); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
