package localkms_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/keybroker/keybroker/internal/localkms"
)

const (
	ruleUser    = "arn:aws:iam::111122223333:user/ann"
	ruleRole    = "arn:aws:iam::111122223333:role/app"
	ruleSession = "arn:aws:sts::111122223333:assumed-role/app/one"
	farUser     = "arn:aws:iam::444455556666:user/ann"
	farRole     = "arn:aws:iam::444455556666:role/app"
)

// scenario is one consequence of a rule of docs/localkms-authorization.md.
type scenario struct {
	rule, what string
	who        string // ARN of a user, of a role (in session one), or of a root
	identity   string // statements of who's identity policy
	session    string // statements of its session policy
	key        string // statements of the key policy, beside one that lets Admin do everything
	trust      string // statements of the trust policy of ruleRole; empty trusts everybody
	grant      func(*kms.CreateGrantInput)
	slow       bool // grants are hidden for an hour
	call       func(*testing.T, *scene) error
	allowed    bool
}

// scene is a scenario, set up.
type scene struct {
	h     *localkms.KMS
	as    aws.CredentialsProvider
	key   string
	grant *kms.CreateGrantOutput
	kms   *kms.Client // of who
}

func (s *scenario) set(t *testing.T) *scene {
	t.Helper()
	version := func(statements string) localkms.PolicyDocument {
		return localkms.PolicyDocument(`{"Version":"2012-10-17","Statement":[` + statements + `]}`)
	}
	var accounts []localkms.Account
	for _, id := range []string{customerAccount, brokerAccount} {
		policies := func(arn string) map[string]localkms.PolicyDocument {
			if arn != s.who || s.identity == "" {
				return nil
			}
			return map[string]localkms.PolicyDocument{"p": version(s.identity)}
		}
		trust := s.trust
		if trust == "" || id == brokerAccount {
			trust = `{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole"}`
		}
		accounts = append(accounts, localkms.Account{
			ID:             id,
			RootAccessKeys: []localkms.AccessKey{{ID: "root" + id, Secret: "s"}},
			Users:          []localkms.User{{Name: "ann", AccessKeys: []localkms.AccessKey{{ID: "ann" + id, Secret: "s"}}, Policies: policies("arn:aws:iam::" + id + ":user/ann")}},
			Roles:          []localkms.Role{{Name: "app", TrustPolicy: version(trust), Policies: policies("arn:aws:iam::" + id + ":role/app")}},
		})
	}
	config := localkms.Config{Accounts: accounts, Principals: cast()}
	if s.slow {
		config.GrantDelay = time.Hour
	}
	sc := &scene{h: newKMS(t, config)}
	keeper := `{"Sid":"Keeper","Effect":"Allow","Principal":{"AWS":["` + admin + `","` + registrar + `"]},"Action":"kms:*","Resource":"*"}`
	sc.key = newKey(t, sc.h, string(version(strings.TrimSuffix(keeper+","+s.key, ","))))
	if s.grant != nil {
		in := decryptGrant(sc.key, s.who)
		in.Operations = []types.GrantOperation{"Encrypt", "DescribeKey"}
		s.grant(in)
		sc.grant = must[*kms.CreateGrantOutput](t)(as(sc.h, admin).CreateGrant(t.Context(), in))
	}
	account := strings.Split(s.who, ":")[4]
	switch {
	case strings.HasSuffix(s.who, ":root"):
		sc.as = credentials.NewStaticCredentialsProvider("root"+account, "s", "")
	case strings.Contains(s.who, ":user/"):
		sc.as = credentials.NewStaticCredentialsProvider("ann"+account, "s", "")
	default:
		by := credentials.NewStaticCredentialsProvider(accessKeyOf(stranger), secretOf(stranger), "")
		sc.as = temporaryOf(assume(t, stsOf(sc.h, by), s.who, "one", func(in *sts.AssumeRoleInput) {
			if s.session != "" {
				in.Policy = aws.String(string(version(s.session)))
			}
		}).Credentials)
	}
	sc.kms = kmsOf(sc.h, sc.as)
	return sc
}

// What scenarios do.
func encrypts(kv ...string) func(*testing.T, *scene) error {
	return func(t *testing.T, s *scene) error { return encryptWith(t, pairs(kv...))(s.kms, s.key) }
}

func encryptsByToken(t *testing.T, s *scene) error {
	_, err := s.kms.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &s.key, Plaintext: []byte("x"), GrantTokens: []string{*s.grant.GrantToken}})
	return err
}

func describes(t *testing.T, s *scene) error { return describe(t)(s.kms, s.key) }

func retires(t *testing.T, s *scene) error {
	_, err := s.kms.RetireGrant(t.Context(), &kms.RetireGrantInput{KeyId: &s.key, GrantId: s.grant.GrantId})
	return err
}

func lists(t *testing.T, s *scene) error {
	_, err := s.kms.ListKeys(t.Context(), &kms.ListKeysInput{})
	return err
}

func creates(tags ...string) func(*testing.T, *scene) error {
	return func(t *testing.T, s *scene) error {
		in := &kms.CreateKeyInput{}
		for _, tag := range tags {
			in.Tags = append(in.Tags, types.Tag{TagKey: aws.String(tag), TagValue: aws.String("x")})
		}
		_, err := s.kms.CreateKey(t.Context(), in)
		return err
	}
}

func makesAlias(t *testing.T, s *scene) error {
	_, err := s.kms.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/a"), TargetKeyId: &s.key})
	return err
}

func makesGrant(operations ...types.GrantOperation) func(*testing.T, *scene) error {
	return func(t *testing.T, s *scene) error {
		in := decryptGrant(s.key, stranger)
		in.Operations = operations
		in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1", "b", "2")}
		_, err := s.kms.CreateGrant(t.Context(), in)
		return err
	}
}

func assumes(change ...func(*sts.AssumeRoleInput)) func(*testing.T, *scene) error {
	return func(t *testing.T, s *scene) error {
		in := &sts.AssumeRoleInput{RoleArn: aws.String(ruleRole), RoleSessionName: aws.String("one")}
		for _, f := range change {
			f(in)
		}
		_, err := stsOf(s.h, s.as).AssumeRole(t.Context(), in)
		return err
	}
}

// Statements that scenarios put together.
func allow(action string, rest ...string) string {
	return `{"Effect":"Allow","Action":"` + action + `","Resource":"*"` + strings.Join(rest, "") + `}`
}

func deny(action string, rest ...string) string {
	return strings.Replace(allow(action, rest...), "Allow", "Deny", 1)
}

func to(principal string) string {
	if principal == "*" {
		return `,"Principal":"*"`
	}
	return `,"Principal":{"AWS":"` + principal + `"}`
}

func when(condition string) string { return `,"Condition":{` + condition + `}` }

func plainGrant(*kms.CreateGrantInput) {}

// granting changes the grant of a scenario.
func granting(grantee string, operations ...types.GrantOperation) func(*kms.CreateGrantInput) {
	return func(in *kms.CreateGrantInput) {
		in.GranteePrincipal = &grantee
		if operations != nil {
			in.Operations = operations
		}
	}
}

func retiredBy(principal string) func(*kms.CreateGrantInput) {
	return func(in *kms.CreateGrantInput) {
		in.GranteePrincipal, in.RetiringPrincipal = aws.String(stranger), &principal
	}
}

func constrainedTo(c types.GrantConstraints) func(*kms.CreateGrantInput) {
	return func(in *kms.CreateGrantInput) { in.Constraints = &c }
}

// TestRules shows each rule at work, through the real client. What it shows is in
// rules_table_test.go.
func TestRules(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range scenarios() {
		seen[s.rule] = true
		t.Run(s.rule+"/"+s.what, func(t *testing.T) {
			err := s.call(t, s.set(t))
			code := refusalOf(err).code
			if allowed := code == ""; allowed != s.allowed || (!allowed && code != "AccessDeniedException" && code != "AccessDenied") {
				t.Errorf("answered %v, want allowed %v", err, s.allowed)
			}
		})
	}
	for _, rule := range documentedRules(t) {
		if !seen[rule] {
			t.Errorf("no scenario shows rule %s", rule)
		}
		delete(seen, rule)
	}
	for rule := range seen {
		t.Errorf("rule %s is not in the document", rule)
	}
}

// documentedRules reads the names of the rules from the document.
func documentedRules(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/localkms-authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z][0-9]+) \|`).FindAllStringSubmatch(string(text), -1) {
		rules = append(rules, row[1])
	}
	if len(rules) < 30 || len(slices.Compact(slices.Sorted(slices.Values(rules)))) != len(rules) {
		t.Fatalf("the document has the rules %v", rules)
	}
	return rules
}

func disables(t *testing.T, s *scene) error {
	_, err := s.kms.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &s.key})
	return err
}
