package broker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// errReached says that a request passed every check that needs no store.
var errReached = errors.New("the store was reached")

type reached struct{ broker.Store }

func (reached) Update(context.Context, func(broker.Tx) error) error { return errReached }
func (reached) View(context.Context, func(broker.Tx) error) error   { return errReached }

// newUnwired gives a broker whose store only says that it was reached.
func newUnwired(t testing.TB, cfg broker.Config) *broker.Broker {
	t.Helper()
	cfg.Deployment, cfg.RegistrarRole, cfg.WorkerRole = "test", harness.RegistrarRole, harness.WorkerRole
	if cfg.GranteeAccounts == nil {
		cfg.GranteeAccounts = []string{harness.ServiceAccount}
	}
	id := func() string { return strings.Repeat("0", 26) }
	cfg.NewID, cfg.NewUID = id, id
	b, err := broker.New(cfg, reached{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func grantTo(b *broker.Broker, grantee string) error {
	_, err := b.CreateGrant(context.Background(), harness.Caller, broker.NewGrant{Domain: "acme", ID: "g", Grantee: grantee,
		Operations: []string{"Decrypt"}, TTL: time.Hour})
	return err
}

const serviceAccount = "222233334444"

// refusedGrantees: only IAM roles of listed accounts may be grantees (T3).
var refusedGrantees = map[string]string{
	"nothing":                "",
	"anyone":                 "*",
	"account id":             serviceAccount,
	"account root":           "arn:aws:iam::222233334444:root",
	"user":                   "arn:aws:iam::222233334444:user/orders",
	"group":                  "arn:aws:iam::222233334444:group/orders",
	"session":                "arn:aws:sts::222233334444:assumed-role/orders/session",
	"federated user":         "arn:aws:sts::222233334444:federated-user/orders",
	"service":                "voiceid.amazonaws.com",
	"service as ARN":         "arn:aws:iam::aws:role/voiceid.amazonaws.com",
	"wildcard name":          "arn:aws:iam::222233334444:role/*",
	"wildcard in name":       "arn:aws:iam::222233334444:role/ord*s",
	"wildcard in path":       "arn:aws:iam::222233334444:role/a?/orders",
	"wildcard account":       "arn:aws:iam::*:role/orders",
	"unlisted account":       "arn:aws:iam::333344445555:role/orders",
	"China":                  "arn:aws-cn:iam::222233334444:role/orders",
	"GovCloud":               "arn:aws-us-gov:iam::222233334444:role/orders",
	"unknown partition":      "arn:aws-x:iam::222233334444:role/orders",
	"with a Region":          "arn:aws:iam:us-east-1:222233334444:role/orders",
	"upper-case service":     "arn:aws:IAM::222233334444:role/orders",
	"upper-case kind":        "arn:aws:iam::222233334444:Role/orders",
	"no name":                "arn:aws:iam::222233334444:role/",
	"path without a name":    "arn:aws:iam::222233334444:role/a/",
	"trailing line feed":     "arn:aws:iam::222233334444:role/orders\n",
	"leading space":          " arn:aws:iam::222233334444:role/orders",
	"NUL":                    "arn:aws:iam::222233334444:role/ord\x00rs",
	"wide letter":            "arn:aws:iam::222233334444:role/оrders",
	"wide digits":            "arn:aws:iam::２２２２３３３３４４４４:role/orders",
	"name too long":          "arn:aws:iam::222233334444:role/" + strings.Repeat("n", 65),
	"too long for KMS":       "arn:aws:iam::222233334444:role/" + strings.Repeat("p", 240) + "/orders",
	"registrar":              harness.RegistrarRole,
	"worker":                 harness.WorkerRole,
	"worker, other spelling": "arn:aws:iam::999999999999:role/KeyBroker-Worker",
}

func TestGranteesThatAreRefused(t *testing.T) {
	// The broker's own account is listed here: its roles are refused for what
	// they are.
	b := newUnwired(t, broker.Config{GranteeAccounts: []string{harness.ServiceAccount, harness.BrokerAccount}})
	for name, arn := range refusedGrantees {
		t.Run(name, func(t *testing.T) { wantReason(t, grantTo(b, arn), broker.ReasonGranteeNotAllowed) })
	}
}

func TestGranteesThatAreAllowed(t *testing.T) {
	b := newUnwired(t, broker.Config{})
	for _, arn := range []string{
		harness.ServiceRole,
		"arn:aws:iam::222233334444:role/service/team+a=b,c.d@e_f/orders",
		"arn:aws:iam::222233334444:role/" + strings.Repeat("n", 64),
		"arn:aws:iam::222233334444:role/" + strings.Repeat("p", 256-len("arn:aws:iam::222233334444:role//n")) + "/n",
	} {
		if err := grantTo(b, arn); !errors.Is(err, errReached) {
			t.Errorf("%s: %v", arn, err)
		}
	}
}

// T3: whatever passes is one role of a listed account, spelt as AWS spells it.
func FuzzGranteeARN(f *testing.F) {
	for _, arn := range refusedGrantees {
		f.Add(arn)
	}
	f.Add(harness.ServiceRole)
	f.Add("arn:aws:iam::222233334444:role/a:b/orders")
	b := newUnwired(f, broker.Config{})
	f.Fuzz(func(t *testing.T, arn string) {
		err := grantTo(b, arn)
		if !errors.Is(err, errReached) {
			wantReason(t, err, broker.ReasonGranteeNotAllowed)
			return
		}
		parts := strings.SplitN(arn, ":", 6)
		if want := []string{"arn", "aws", "iam", "", serviceAccount}; len(parts) != 6 || !slices.Equal(parts[:5], want) {
			t.Fatalf("accepted %q", arn)
		}
		if role, ok := strings.CutPrefix(parts[5], "role/"); !ok || role == "" || strings.HasSuffix(role, "/") {
			t.Fatalf("accepted %q", arn)
		}
		if strings.ContainsAny(arn, "*? \t\r\n\x00") || len(arn) > 256 || broker.RoleAccount(arn) != serviceAccount {
			t.Fatalf("accepted %q", arn)
		}
	})
}

// Keys are named in full: an id or alias name means another key elsewhere.
func TestKeyARNs(t *testing.T) {
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	for arn, legal := range map[string]bool{
		"arn:aws:kms:us-east-1:111122223333:key/" + id:                                true,
		"arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab": true,
		"arn:aws:kms:us-east-1:111122223333:alias/orders":                             true,
		"arn:aws-cn:kms:cn-north-1:111122223333:key/" + id:                            true,
		"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/" + id:                     true,
		id:             false,
		"alias/orders": false,
		"":             false,
		"*":            false,
		"arn:aws:kms:us-east-1:111122223333:key/*":                                   false,
		"arn:aws:kms:us-east-1:111122223333:key/":                                    false,
		"arn:aws:kms:*:111122223333:key/" + id:                                       false,
		"arn:aws:kms::111122223333:key/" + id:                                        false,
		"arn:aws:kms:us-east-1::key/" + id:                                           false,
		"arn:aws:kms:us-east-1:11112222333:key/" + id:                                false,
		"arn:aws:kms:us-east-1:111122223333:grant/" + id:                             false,
		"arn:aws:s3:us-east-1:111122223333:key/" + id:                                false,
		"arn:aws-iso:kms:us-east-1:111122223333:key/" + id:                           false,
		"arn:aws:kms:us-east-1.evil.test:111122223333:key/" + id:                     false,
		"arn:aws:kms:us-east-1@evil:111122223333:key/" + id:                          false,
		"arn:aws:kms:us-east-1/:111122223333:key/" + id:                              false,
		"arn:aws:kms:us-east-1:111122223333:key/" + id + "\n":                        false,
		" arn:aws:kms:us-east-1:111122223333:key/" + id:                              false,
		"ARN:aws:kms:us-east-1:111122223333:key/" + id:                               false,
		"arn:aws:kms:us-east-1:111122223333:key/" + id + "%2F":                       false,
		"arn:aws:kms:us-east-1:111122223333:key/../" + id:                            false,
		"arn:aws:kms:us-east-1:111122223333:key/" + strings.Repeat("a", 257):         false,
		"arn:aws:kms:us-east-1:111122223333:key/" + strings.Repeat("a", 36) + "?x=1": false,
	} {
		want := broker.ReasonKeyARNInvalid
		if legal {
			want = ""
		}
		if got := broker.ReasonOf(broker.ValidateKeyChange(arn, "reason")); got != want {
			t.Errorf("%q: got %q, want %q", arn, got, want)
		}
	}
}

// T19: the Region in a key's ARN becomes part of a host name, so nothing but a
// Region's letters may stand there.
func FuzzKeyARN(f *testing.F) {
	f.Add("arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")
	f.Add("arn:aws:kms:us-east-1:111122223333:alias/a/b:c_d")
	f.Add("arn:aws:kms:us-east-1.evil:111122223333:key/a")
	f.Add("alias/orders")
	f.Fuzz(func(t *testing.T, arn string) {
		account, region := broker.KeyARN(arn).Account(), broker.KeyARN(arn).Region()
		if broker.ValidateKeyChange(arn, "reason") != nil {
			if account != "" || region != "" {
				t.Fatalf("%q is refused, yet has account %q and Region %q", arn, account, region)
			}
			return
		}
		parts := strings.SplitN(arn, ":", 6)
		if len(parts) != 6 || parts[0] != "arn" || parts[2] != "kms" || parts[3] != region || parts[4] != account {
			t.Fatalf("%q was read as account %q, Region %q", arn, account, region)
		}
		if strings.Trim(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || region == "" ||
			len(account) != 12 || strings.Trim(account, "0123456789") != "" {
			t.Fatalf("accepted %q", arn)
		}
		if strings.ContainsAny(arn, "*?%. \n\x00") {
			t.Fatalf("accepted %q", arn)
		}
	})
}

func TestReasonOfAKeyChange(t *testing.T) {
	const key = "arn:aws:kms:us-east-1:111122223333:key/a"
	for reason, want := range map[string]broker.Reason{
		"":                       "",
		"x":                      "",
		strings.Repeat("é", 512): "",
		strings.Repeat("é", 513): broker.ReasonFieldInvalid,
	} {
		if got := broker.ReasonOf(broker.ValidateKeyChange(key, reason)); got != want {
			t.Errorf("a reason of %d bytes: got %q, want %q", len(reason), got, want)
		}
	}
}

func TestCheckKey(t *testing.T) {
	const ours = "arn:aws:kms:us-east-1:111122223333:key/a"
	good := broker.KeyMetadata{ARN: ours, KeySpec: "SYMMETRIC_DEFAULT", KeyUsage: "ENCRYPT_DECRYPT", KeyState: "Enabled"}
	for name, test := range map[string]struct {
		change func(*broker.KeyMetadata)
		want   broker.Reason
	}{
		"good":             {func(*broker.KeyMetadata) {}, ""},
		"RSA":              {func(m *broker.KeyMetadata) { m.KeySpec = "RSA_2048" }, broker.ReasonKeyNotSymmetric},
		"HMAC":             {func(m *broker.KeyMetadata) { m.KeyUsage = "GENERATE_VERIFY_MAC" }, broker.ReasonKeyNotSymmetric},
		"other Region":     {func(m *broker.KeyMetadata) { m.ARN = "arn:aws:kms:eu-west-1:111122223333:key/a" }, broker.ReasonKeyRegionMismatch},
		"other partition":  {func(m *broker.KeyMetadata) { m.ARN = "arn:aws-cn:kms:us-east-1:111122223333:key/a" }, broker.ReasonKeyRegionMismatch},
		"other account":    {func(m *broker.KeyMetadata) { m.ARN = "arn:aws:kms:us-east-1:444455556666:key/a" }, broker.ReasonKeyAccountNotAllowed},
		"disabled":         {func(m *broker.KeyMetadata) { m.KeyState = "Disabled" }, broker.ReasonKeyDisabled},
		"pending deletion": {func(m *broker.KeyMetadata) { m.KeyState = "PendingDeletion" }, broker.ReasonKeyStateInvalid},
		"unheard of":       {func(m *broker.KeyMetadata) { m.KeyState = "" }, broker.ReasonKeyStateInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			m := good
			test.change(&m)
			d := broker.Domain{ID: "acme", Region: "us-east-1", KeyAccounts: []string{"111122223333"}}
			wantReason(t, brokerOver(t, nil, nil).CheckKey(d, m), test.want)
		})
	}
}
