package localkms_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/localkms"
)

func TestReadAccounts(t *testing.T) {
	accounts := accountsOf(t)
	if got := len(accounts); got != 2 {
		t.Fatalf("%d accounts", got)
	}
	if got, want := accounts[0].Users[0], "/team/"; got.Path != want || got.AccessKeys[0].Secret != "alice" || got.Policies["keys"] == "" {
		t.Errorf("alice is %+v", got)
	}
	text, err := json.Marshal(map[string]any{"accounts": accounts})
	if err != nil {
		t.Fatal(err)
	}
	again, err := localkms.ReadAccounts(text)
	if err != nil {
		t.Fatal(err)
	}
	squeeze := cmp.Transformer("squeeze", func(d localkms.PolicyDocument) any {
		var v any
		if err := json.Unmarshal([]byte(d), &v); err != nil {
			t.Fatal(err)
		}
		return v
	})
	if diff := cmp.Diff(accounts, again, squeeze); diff != "" {
		t.Errorf("written and read again (-first +second):\n%s", diff)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"no JSON":             {`{`, "unexpected end"},
		"nobody":              {`{}`, "accounts: there is none"},
		"a list":              {`[]`, "cannot unmarshal array"},
		"an unknown member":   {`{"acounts":[]}`, "acounts: no such member; there are accounts"},
		"of an account":       {`{"accounts":[{"id":"1"},{"name":"x"}]}`, "accounts[1].name: no such member; there are id, role"},
		"of a user":           {`{"accounts":[{"users":[{"polices":{}}]}]}`, "accounts[0].users[0].polices: no such member"},
		"of a role":           {`{"accounts":[{"roles":[{},{"access_keys":[]}]}]}`, "accounts[0].roles[1].access_keys: no such member"},
		"of an access key":    {`{"accounts":[{"root_access_keys":[{"secret":"x"}]}]}`, "accounts[0].root_access_keys[0].secret: no such member; there are access_key_id, secret_access_key"},
		"in other case":       {`{"accounts":[{"ID":"1"}]}`, "accounts[0].ID: no such member"},
		"a policy as text":    {`{"accounts":[{"roles":[{"trust_policy":"{}"}]}]}`, "a policy must be a JSON object"},
		"a number for a name": {`{"accounts":[{"id":1}]}`, "cannot unmarshal number"},
	} {
		if _, err := localkms.ReadAccounts([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
}

func TestNewRefusesAccounts(t *testing.T) {
	const trust = `{"Statement":{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole"}}`
	role := func(change func(*localkms.Role)) []localkms.Account {
		r := localkms.Role{Name: "r", TrustPolicy: trust}
		change(&r)
		return []localkms.Account{{ID: customerAccount, Roles: []localkms.Role{r}}}
	}
	user := func(users ...localkms.User) []localkms.Account {
		return []localkms.Account{{ID: customerAccount, Users: users}}
	}
	policy := func(document string) []localkms.Account {
		return user(localkms.User{Name: "u", Policies: map[string]localkms.PolicyDocument{"p": localkms.PolicyDocument(document)}})
	}
	key := []localkms.AccessKey{{ID: "A", Secret: "s"}}
	if _, err := localkms.New(localkms.Config{Accounts: role(func(*localkms.Role) {}), Now: newClock().Now}); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		accounts []localkms.Account
		want     string
	}{
		"id":                    {[]localkms.Account{{ID: "1"}}, `account "1": want 12 digits`},
		"same id":               {[]localkms.Account{{ID: customerAccount}, {ID: customerAccount}}, "account 111122223333 is there twice"},
		"name":                  {user(localkms.User{Name: "a b"}), `user "a b": want a name`},
		"same name":             {user(localkms.User{Name: "a", Path: "/x/"}, localkms.User{Name: "A"}), "user A is there twice"},
		"path":                  {user(localkms.User{Name: "a", Path: "x"}), `user a: path "x"`},
		"access key without id": {user(localkms.User{Name: "a", AccessKeys: []localkms.AccessKey{{Secret: "s"}}}), "want an access key id"},
		"access key, no secret": {user(localkms.User{Name: "a", AccessKeys: []localkms.AccessKey{{ID: "A"}}}), "access key A has no secret"},
		"shared access key":     {user(localkms.User{Name: "a", AccessKeys: key}, localkms.User{Name: "b", AccessKeys: key}), "share the access key id A"},
		"no trust policy":       {role(func(r *localkms.Role) { r.TrustPolicy = "" }), "role r: trust_policy"},
		"trust without principal": {role(func(r *localkms.Role) {
			r.TrustPolicy = `{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole"}}`
		}), "invalid principals"},
		"trust with a resource": {role(func(r *localkms.Role) {
			r.TrustPolicy = `{"Statement":{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole","Resource":"*"}}`
		}), "a Resource, which a role trust policy does not have"},
		"trust of another service": {role(func(r *localkms.Role) {
			r.TrustPolicy = `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:Encrypt"}}`
		}), "an action of another service"},
		"short sessions":         {role(func(r *localkms.Role) { r.MaxSessionSeconds = 900 }), "max_session_seconds is 900"},
		"long sessions":          {role(func(r *localkms.Role) { r.MaxSessionSeconds = 43_201 }), "max_session_seconds is 43201"},
		"policy":                 {policy(`{"Statement":[]}`), "user u: policy p: MalformedPolicyDocumentException: Policy contains no statement."},
		"policy with principal":  {policy(`{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}`), "a Principal, which an identity-based policy does not have"},
		"policy without action":  {policy(`{"Statement":{"Effect":"Allow","Resource":"*"}}`), "exactly one of Action and NotAction"},
		"policy, no resource":    {policy(`{"Statement":{"Effect":"Allow","Action":"kms:*"}}`), "without Resource"},
		"policy, both resources": {policy(`{"Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*","NotResource":"*"}}`), "both Resource and NotResource"},
		"policy, no action":      {policy(`{"Statement":{"Effect":"Allow","Action":"decrypt","Resource":"*"}}`), "invalid action: decrypt"},
		"policy, tag variable":   {policy(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/${aws:PrincipalTag/team}"}}`), "does not support: ${aws:PrincipalTag/team}"},
		"policy, open variable":  {policy(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"${aws:username"}}`), "without its end"},
		"policy, bare default":   {policy(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"${aws:username, x}"}}`), "not in single quotes"},
	} {
		if _, err := localkms.New(localkms.Config{Accounts: tc.accounts, Now: newClock().Now}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
}
