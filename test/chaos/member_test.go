//go:build unix

package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/test/chaos/devserver"
	"github.com/keybroker/keybroker/test/harness"
)

// The members of a cluster: the KMS is `broker localkms`, each replica is `broker
// serve --config`, with the roles and policies of docs/deploy.md.

var (
	servingLine = regexp.MustCompile(`"msg":"serving","address":"(\S+?)"`)
	kmsLine     = regexp.MustCompile(`^KMS and STS on (\S+)$`)
)

const (
	brokerAccount = "999999999999"
	memberRegion  = "us-east-1"
	grantDelay    = 200 * time.Millisecond
	// memberLease is how long the work of a replica that died waits for another.
	memberLease = 3 * time.Second
	// clockVariable says how far a replica's clock is off.
	clockVariable = "KEYBROKER_CHAOS_CLOCK"
)

// What a replica has that the product's surface has not: another clock, STS where
// the KMS is, and the times of --dev, so that a run has many key changes.
const replicaSource = `package main

import (
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/keybroker/keybroker/internal/awskms"
)

func shiftedClock() time.Time {
	by, _ := time.ParseDuration(os.Getenv("` + clockVariable + `"))
	return time.Now().Add(by)
}

type besideKMS struct{ *url.URL }

func (b besideKMS) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = r.URL.Host // as it was signed
	r.URL.Scheme, r.URL.Host = b.Scheme, b.Host
	return http.DefaultTransport.RoundTrip(r)
}

func localRoles(c Config) awskms.AssumeRoles {
	roles := c.assumeRoles()
	at, err := url.Parse(c.KMSEndpoint)
	if err != nil {
		panic(err)
	}
	roles.Transport = besideKMS{at}
	return roles
}

func quick(w wiring) wiring {
	w.lease, w.probe, w.poll, w.sweep = devLease, devProbe, 200*time.Millisecond, time.Second
	w.broker.KMSCallTimeout = devKMSTimeout
	return w
}
`

// replicaEdits put it in: each text stands in its file once.
func replicaEdits() []struct{ file, text, by string } {
	return []struct{ file, text, by string }{
		{"wire.go", "newIDs(time.Now)", "newIDs(shiftedClock)"},
		{"wire.go", "a := &app{", "w = quick(w)\n\ta := &app{"},
		{"serve.go", "config.assumeRoles()", "localRoles(config)"},
	}
}

// buildReplica builds the broker with the clock and the times of the test.
func buildReplica(ctx context.Context, dir string) (string, error) {
	root, err := devserver.Root()
	if err != nil {
		return "", err
	}
	room := filepath.Join(root, "cmd", "broker")
	sources := map[string]string{"chaos.go": replicaSource}
	for _, e := range replicaEdits() {
		if sources[e.file] == "" {
			text, err := os.ReadFile(filepath.Join(room, e.file))
			if err != nil {
				return "", err
			}
			sources[e.file] = string(text)
		}
		if n := strings.Count(sources[e.file], e.text); n != 1 {
			return "", fmt.Errorf("%s has %q %d times: mend replicaEdits", e.file, e.text, n)
		}
		sources[e.file] = strings.Replace(sources[e.file], e.text, e.by, 1)
	}
	overlay := map[string]string{}
	for file, text := range sources {
		to := filepath.Join(dir, file)
		overlay[filepath.Join(room, file)] = to
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list := filepath.Join(dir, "overlay.json")
	if err := writeJSON(list, map[string]any{"Replace": overlay}); err != nil {
		return "", err
	}
	return devserver.Build(ctx, dir, "-overlay", list)
}

func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// startKMS starts the KMS, with the accounts of customer, service and broker.
func (c *cluster) startKMS(ctx context.Context) error {
	accounts, err := memberAccounts()
	if err != nil {
		return err
	}
	file := filepath.Join(c.dir, "accounts.json")
	if err := writeJSON(file, map[string]any{"accounts": accounts}); err != nil {
		return err
	}
	if c.kms, err = devserver.Run(exec.Command(c.bin, "localkms", "--listen", "127.0.0.1:0", "--data", filepath.Join(c.dir, "kms"),
		"--accounts", file, "--grant-delay", grantDelay.String()), c.log, kmsLine); err != nil {
		return err
	}
	if err := c.kms.Ready(ctx); err != nil {
		return err
	}
	return c.writeProfiles(ctx)
}

func memberAccounts() ([]localkms.Account, error) {
	root, err := devserver.Root()
	if err != nil {
		return nil, err
	}
	policies := map[string]localkms.PolicyDocument{}
	for _, name := range []string{"pod", "trust", "registrar"} {
		text, err := harness.Document(filepath.Join(root, "docs", "deploy.md"), "policy: "+name)
		if err != nil {
			return nil, err
		}
		text = strings.ReplaceAll(text, "111122223333", brokerAccount)
		// Outside AWS nobody hands a role to a pod: it is a user here.
		policies[name] = localkms.PolicyDocument(strings.ReplaceAll(text, `:role/keybroker"`, `:user/keybroker"`))
	}
	key := func(name string) []localkms.AccessKey {
		return []localkms.AccessKey{{ID: "AKIA" + strings.ToUpper(name), Secret: name}}
	}
	role := func(name, policy string) localkms.Role {
		r := localkms.Role{Name: name, TrustPolicy: policies["trust"]}
		if policy != "" {
			r.Policies = map[string]localkms.PolicyDocument{policy: policies[policy]}
		}
		return r
	}
	const service = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::222233334444:user/service"},"Action":"sts:AssumeRole"}}`
	return []localkms.Account{
		{ID: "111122223333", RootAccessKeys: key("customer")},
		{ID: "222233334444", Users: []localkms.User{{Name: "service", AccessKeys: key("service")}},
			Roles: []localkms.Role{{Name: "orders", TrustPolicy: localkms.PolicyDocument(service)}}},
		{ID: brokerAccount, Users: []localkms.User{{Name: "keybroker", AccessKeys: key("keybroker"),
			Policies: map[string]localkms.PolicyDocument{"pod": policies["pod"]}}},
			Roles: []localkms.Role{role("keybroker-registrar", "registrar"), role("keybroker-worker", "")}},
	}, nil
}

// writeProfiles writes the file that makes clients the customer or the service's
// user, who assumes the role that grants are for: roles have no access keys.
func (c *cluster) writeProfiles(ctx context.Context) error {
	c.profiles = filepath.Join(c.dir, "aws-config")
	place := fmt.Sprintf("region = %s\nendpoint_url = %s\n", memberRegion, c.kms.API)
	err := os.WriteFile(c.profiles, []byte("[profile customer]\n"+place+"aws_access_key_id = AKIACUSTOMER\naws_secret_access_key = customer\n"+
		"[profile service]\n"+place+"aws_access_key_id = AKIASERVICE\naws_secret_access_key = service\n"), 0o600)
	if err != nil {
		return err
	}
	if c.service, err = awsProfile(ctx, c.profiles, "service"); err != nil {
		return err
	}
	c.service.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(c.service), serviceARN))
	return nil
}

// memberQuota is what the replicas are told of KMS's quota, which they share by
// heartbeats: rows move for seconds, so that strikes meet moving rows.
const memberQuota = 800

// replicaConfig is the configuration file of every replica.
func (c *cluster) replicaConfig() map[string]any {
	return map[string]any{
		"listen": "127.0.0.1:0", "admin": "off", "database_url_file": c.urlFile(), "deployment": "chaos",
		"registrar_role": "arn:aws:iam::" + brokerAccount + ":role/keybroker-registrar",
		"worker_role":    "arn:aws:iam::" + brokerAccount + ":role/keybroker-worker",
		"aws_region":     memberRegion, "regions": []string{memberRegion}, "kms_endpoint": c.kms.API,
		"grantee_accounts": []string{"222233334444"},
		"kms_budget":       map[string]any{"requests_per_second": map[string]int{memberRegion: memberQuota}},
		"windows":          map[string]string{"grant_visibility": "2s", "max_store_delay": "2s", "max_read_delay": "3s"},
	}
}

// spawn starts a process of the broker whose clock is off by some time.
func (c *cluster) spawn(clock time.Duration) (*devserver.Server, error) {
	return devserver.Run(exec.Command(c.bin, "serve", "--config", c.configFile()), c.log, servingLine,
		clockVariable+"="+clock.String(), "AWS_ACCESS_KEY_ID=AKIAKEYBROKER", "AWS_SECRET_ACCESS_KEY=keybroker")
}
