package localkms

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Account is an AWS account, and who is in it.
type Account struct {
	// ID has 12 digits. No two accounts have the same.
	ID string `json:"id"`

	// RootAccessKeys are those of the account's root user, whom no identity policy
	// limits.
	RootAccessKeys []AccessKey `json:"root_access_keys"`

	Users []User `json:"users"`
	Roles []Role `json:"roles"`
}

// AccessKey is a permanent access key.
type AccessKey struct {
	// ID is unique among all access keys of a KMS.
	ID string `json:"access_key_id"`
	// Secret is what requests are signed with.
	Secret string `json:"secret_access_key"`
}

// User is an IAM user, arn:aws:iam::ACCOUNT:user/NAME.
type User struct {
	Name string `json:"name"` // 1 to 64 characters, unique in its account
	Path string `json:"path"` // begins and ends with a slash; empty is /

	AccessKeys []AccessKey `json:"access_keys"`

	// Policies are its inline identity policies, by name. Without any it may do
	// nothing but what a key policy or a grant allows it by itself.
	Policies map[string]PolicyDocument `json:"policies"`
}

// Role is an IAM role, arn:aws:iam::ACCOUNT:role/NAME. It has no access keys: STS
// gives temporary ones to whom its trust policy lets.
type Role struct {
	Name string `json:"name"` // 1 to 64 characters, unique in its account
	Path string `json:"path"` // begins and ends with a slash; empty is /

	// TrustPolicy says who may assume the role, and under which conditions:
	// sts:ExternalId, for one. Required.
	TrustPolicy PolicyDocument `json:"trust_policy"`

	// Policies are its inline identity policies, by name.
	Policies map[string]PolicyDocument `json:"policies"`

	// MaxSessionSeconds is how long a session may last: 3,600 to 43,200; 0 is
	// 3,600 (IAM User Guide, "Update the maximum session duration for a role").
	MaxSessionSeconds int `json:"max_session_seconds"`
}

// PolicyDocument is the text of a policy. In JSON it stands as the object it is.
type PolicyDocument string

// UnmarshalJSON implements json.Unmarshaler.
func (d *PolicyDocument) UnmarshalJSON(text []byte) error {
	if len(text) == 0 || text[0] != '{' {
		return errors.New("a policy must be a JSON object")
	}
	*d = PolicyDocument(text)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (d PolicyDocument) MarshalJSON() ([]byte, error) { return []byte(d), nil }

// ReadAccounts reads {"accounts":[…]}, whose members are those of [Account]. It errs
// on a member that it does not know, and says where: a misspelt one would be a
// policy that is not there. Whether names, keys and policies are right, New says.
func ReadAccounts(text []byte) ([]Account, error) {
	var file struct {
		Accounts []Account `json:"accounts"`
	}
	var shape any
	if err := json.Unmarshal(text, &shape); err != nil {
		return nil, err
	}
	if err := checkMembers("", shape, reflect.TypeOf(file)); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&file); err != nil {
		return nil, err
	}
	if len(file.Accounts) == 0 {
		return nil, errors.New("accounts: there is none")
	}
	return file.Accounts, nil
}

// checkMembers compares the members of JSON objects with those of Go structs.
func checkMembers(path string, value any, into reflect.Type) error {
	switch value := value.(type) {
	case []any:
		if into.Kind() != reflect.Slice {
			return nil // Unmarshal says so better
		}
		for i, item := range value {
			if err := checkMembers(path+"["+strconv.Itoa(i)+"]", item, into.Elem()); err != nil {
				return err
			}
		}
	case map[string]any:
		if into.Kind() != reflect.Struct {
			return nil
		}
		members := map[string]reflect.Type{}
		for field := range into.Fields() {
			members[field.Tag.Get("json")] = field.Type
		}
		for _, name := range slices.Sorted(maps.Keys(value)) {
			at := strings.TrimPrefix(path+"."+name, ".")
			if members[name] == nil {
				return fmt.Errorf("%s: no such member; there are %s", at, strings.Join(slices.Sorted(maps.Keys(members)), ", "))
			}
			if err := checkMembers(at, value[name], members[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

// directory is who may call, and which roles there are.
type directory struct {
	credentials map[string]credential // of permanent keys, by access key id
	roles       map[string]*role      // by ARN
}

// role is a role that can be assumed.
type role struct {
	*identity
	name  string
	trust *policy
	most  time.Duration // of a session
}

// The range of a role's longest session (IAM API Reference, CreateRole,
// MaxSessionDuration).
const (
	minMaxSession = time.Hour
	maxMaxSession = 12 * time.Hour
)

var (
	entityNamePattern = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)
	pathPattern       = regexp.MustCompile(`^/(?:[!-~]+/)?$`)
)

func newDirectory(accounts []Account, principals []Principal) (*directory, error) {
	d := &directory{credentials: map[string]credential{}, roles: map[string]*role{}}
	seen := map[string]bool{}
	for _, a := range accounts {
		if !accountPattern.MatchString(a.ID) {
			return nil, fmt.Errorf("account %q: want 12 digits", a.ID)
		}
		if seen[a.ID] {
			return nil, fmt.Errorf("account %s is there twice", a.ID)
		}
		seen[a.ID] = true
		if err := d.addAccount(a); err != nil {
			return nil, fmt.Errorf("account %s: %w", a.ID, err)
		}
	}
	return d, d.addPrincipals(principals)
}

func (d *directory) addAccount(a Account) error {
	if err := d.addKeys(newIdentity(rootARN(a.ID)), a.RootAccessKeys); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, u := range a.Users {
		arn, err := entityARN(names, a.ID, "user", u.Path, u.Name)
		if err != nil {
			return err
		}
		policies, err := parseIdentityPolicies(u.Policies)
		if err != nil {
			return fmt.Errorf("user %s: %w", u.Name, err)
		}
		if err := d.addKeys(newIdentity(arn, policies...), u.AccessKeys); err != nil {
			return err
		}
	}
	for _, r := range a.Roles {
		arn, err := entityARN(names, a.ID, "role", r.Path, r.Name)
		if err != nil {
			return err
		}
		if d.roles[arn], err = newRole(arn, r); err != nil {
			return fmt.Errorf("role %s: %w", r.Name, err)
		}
	}
	return nil
}

// entityARN returns the ARN of a user or role. Names are unique whatever their path
// and case (IAM User Guide, "IAM and AWS STS quotas", IAM name requirements).
func entityARN(taken map[string]bool, account, kind, path, name string) (string, error) {
	if path == "" {
		path = "/"
	}
	switch unique := kind + " " + strings.ToLower(name); {
	case !entityNamePattern.MatchString(name):
		return "", fmt.Errorf("%s %q: want a name of 1 to 64 letters, digits and _+=,.@-", kind, name)
	case !pathPattern.MatchString(path):
		return "", fmt.Errorf("%s %s: path %q does not begin and end with a slash", kind, name, path)
	case taken[unique]:
		return "", fmt.Errorf("%s %s is there twice", kind, name)
	default:
		taken[unique] = true
	}
	return "arn:aws:iam::" + account + ":" + kind + path + name, nil
}

func newRole(arn string, r Role) (*role, error) {
	most := time.Duration(r.MaxSessionSeconds) * time.Second
	if most == 0 {
		most = minMaxSession
	}
	if most < minMaxSession || most > maxMaxSession {
		return nil, fmt.Errorf("max_session_seconds is %d, want 3600 to 43200", r.MaxSessionSeconds)
	}
	trust, err := parsePolicy(trustPolicy, "", string(r.TrustPolicy))
	if err != nil {
		return nil, fmt.Errorf("trust_policy: %w", err)
	}
	policies, err := parseIdentityPolicies(r.Policies)
	if err != nil {
		return nil, err
	}
	return &role{identity: newIdentity(arn, policies...), name: r.Name, trust: trust, most: most}, nil
}

func parseIdentityPolicies(documents map[string]PolicyDocument) ([]*policy, error) {
	var policies []*policy
	for _, name := range slices.Sorted(maps.Keys(documents)) {
		p, err := parsePolicy(identityPolicy, name, string(documents[name]))
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", name, err)
		}
		policies = append(policies, p)
	}
	return policies, nil
}

// addPrincipals adds principals that may do anything that their account may.
func (d *directory) addPrincipals(principals []Principal) error {
	all, err := parsePolicy(identityPolicy, "everything", `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`)
	if err != nil {
		return err
	}
	for _, p := range principals {
		if principalAccount(p.ARN) == "" || !strings.HasPrefix(p.ARN, "arn:aws:iam:") {
			return fmt.Errorf("principal %q: want the ARN of an IAM role, user or account root", p.ARN)
		}
		if err := d.addKeys(newIdentity(p.ARN, all), []AccessKey{{p.AccessKeyID, p.SecretAccessKey}}); err != nil {
			return err
		}
	}
	return nil
}

func (d *directory) addKeys(who *identity, keys []AccessKey) error {
	for _, key := range keys {
		switch other, taken := d.credentials[key.ID]; {
		case key.ID == "" || strings.ContainsAny(key.ID, "/, "):
			return fmt.Errorf("%s: want an access key id without slash, comma or space", who.arn)
		case key.Secret == "":
			return fmt.Errorf("%s: access key %s has no secret", who.arn, key.ID)
		case taken:
			return fmt.Errorf("%s and %s share the access key id %s", other.identity.arn, who.arn, key.ID)
		}
		d.credentials[key.ID] = credential{who, key.Secret}
	}
	return nil
}
