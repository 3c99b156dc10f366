package localkms

import (
	"encoding/json"
	"slices"
	"strings"
)

// maxPolicy is the largest key policy in bytes. Source: AWS KMS Developer Guide,
// Quotas, "Key policy document size".
const maxPolicy = 32_768

// policy is a key policy, parsed. It is never altered.
type policy struct {
	text       string
	statements []statement
}

type statement struct {
	deny       bool
	principals principals
	actions    []string // patterns, folded
	notActions bool     // actions are those the statement does not apply to
	resources  []string // patterns
	conditions []condition
}

// principals are the callers that a statement names.
type principals struct {
	everyone bool
	accounts []string // 12 digits: all principals of the account
	arns     []string
}

type decision int

const (
	unmentioned decision = iota
	allowed
	denied
)

// defaultPolicy lets the account of a key decide, as AWS does for a key that is
// made without a policy.
func defaultPolicy(account string) string {
	return `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "` + rootARN(account) + `"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`
}

// decide evaluates the policy: a statement that denies wins over all that allow.
func (p *policy) decide(q *query) decision {
	result := unmentioned
	for i := range p.statements {
		s := &p.statements[i]
		if s.deny || result == unmentioned {
			if !s.applies(q) {
				continue
			}
			if s.deny {
				return denied
			}
			result = allowed
		}
	}
	return result
}

func (s *statement) applies(q *query) bool {
	if !s.principals.include(q.caller) ||
		matchesAny(s.actions, "kms:"+fold(q.access.operation)) == s.notActions ||
		!matchesAny(s.resources, q.keyARN) {
		return false
	}
	for i := range s.conditions {
		if !s.conditions[i].met(q) {
			return false
		}
	}
	return true
}

func (p *principals) include(caller *identity) bool {
	return p.everyone || slices.Contains(p.accounts, caller.account) || slices.Contains(p.arns, caller.arn)
}

func matchesAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return wildcard(pattern, s) })
}

// wildcard matches s with a pattern in which * stands for any run of characters
// and ? for any one (IAM User Guide, "Resource").
func wildcard(pattern, s string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(s) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && (pattern[i] == '?' || pattern[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}

// parsePolicy reads a key policy. It errs with MalformedPolicyDocumentException
// on anything it would not evaluate as AWS does, and with LimitExceededException
// above maxPolicy.
func parsePolicy(document string) (*policy, error) {
	if len(document) > maxPolicy {
		return nil, faultf(codeLimitExceeded, "The policy document is larger than the quota of %d bytes.", maxPolicy)
	}
	var doc struct {
		Version   string
		ID        string `json:"Id"`
		Statement oneOrMore[statementDoc]
	}
	if err := strictJSON(document, &doc); err != nil {
		return nil, malformed("Policy contains invalid JSON: " + err.Error())
	}
	if doc.Version != "2012-10-17" && doc.Version != "2008-10-17" && doc.Version != "" {
		return nil, malformed("Policy contains an unknown version.")
	}
	if len(doc.Statement) == 0 {
		return nil, malformed("Policy contains no statement.")
	}
	p := &policy{text: document}
	for _, d := range doc.Statement {
		s, err := d.compile()
		if err != nil {
			return nil, err
		}
		p.statements = append(p.statements, s)
	}
	return p, nil
}

func malformed(message string) error { return fault(codeMalformedPolicy, message) }

func strictJSON(document string, into any) error {
	d := json.NewDecoder(strings.NewReader(document))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errTrailingText
	}
	return nil
}

// oneOrMore is a policy element that may be a single value or a list.
type oneOrMore[T any] []T

func (l *oneOrMore[T]) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return strictJSON(string(b), (*[]T)(l))
	}
	var single T
	if err := strictJSON(string(b), &single); err != nil {
		return err
	}
	*l = oneOrMore[T]{single}
	return nil
}

type statementDoc struct {
	Sid       string
	Effect    string
	Principal json.RawMessage
	Action    oneOrMore[string]
	NotAction oneOrMore[string]
	Resource  oneOrMore[string]
	Condition map[string]map[string]oneOrMore[conditionValue]
}

func (d *statementDoc) compile() (statement, error) {
	if d.Effect != "Allow" && d.Effect != "Deny" {
		return statement{}, malformed("Policy contains a statement whose Effect is neither Allow nor Deny.")
	}
	if (len(d.Action) == 0) == (len(d.NotAction) == 0) {
		return statement{}, malformed("Policy contains a statement without exactly one of Action and NotAction.")
	}
	if len(d.Resource) == 0 {
		return statement{}, malformed("Policy contains a statement without Resource.")
	}
	who, err := parsePrincipals(d.Principal)
	if err != nil {
		return statement{}, err
	}
	s := statement{
		deny:       d.Effect == "Deny",
		principals: who,
		notActions: len(d.NotAction) > 0,
		resources:  d.Resource,
	}
	for _, action := range slices.Concat(d.Action, d.NotAction) {
		if action != "*" && !strings.HasPrefix(fold(action), "kms:") {
			return statement{}, malformed("Policy contains an action of another service: " + action)
		}
		s.actions = append(s.actions, fold(action))
	}
	s.conditions, err = parseConditions(d.Condition)
	return s, err
}

// parsePrincipals reads a Principal element. Services and federated principals
// are legal, and never call this KMS.
func parsePrincipals(raw json.RawMessage) (principals, error) {
	var all string
	if json.Unmarshal(raw, &all) == nil && all == "*" {
		return principals{everyone: true}, nil
	}
	var doc struct {
		AWS       oneOrMore[string]
		Service   oneOrMore[string]
		Federated oneOrMore[string]
	}
	if err := strictJSON(string(raw), &doc); err != nil || len(doc.AWS)+len(doc.Service)+len(doc.Federated) == 0 {
		return principals{}, errInvalidPrincipals()
	}
	var p principals
	for _, name := range doc.AWS {
		account := principalAccount(name)
		switch {
		case name == "*":
			p.everyone = true
		case accountPattern.MatchString(name):
			p.accounts = append(p.accounts, name)
		case account == "":
			return principals{}, errInvalidPrincipals()
		case name == rootARN(account):
			p.accounts = append(p.accounts, account)
		default:
			p.arns = append(p.arns, name)
		}
	}
	return p, nil
}

func errInvalidPrincipals() error {
	return malformed("Policy contains a statement with one or more invalid principals.")
}
