package localkms

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxPolicy is the largest key policy in bytes. Source: AWS KMS Developer Guide,
// Quotas, "Key policy document size".
const maxPolicy = 32_768

// policyKind says what a policy is attached to. It is named as AWS names it in
// refusals.
type policyKind string

const (
	keyPolicy      policyKind = "resource-based"
	trustPolicy    policyKind = "role trust"
	identityPolicy policyKind = "identity-based"
	sessionPolicy  policyKind = "session"
)

// policy is a policy, parsed. It is never altered.
type policy struct {
	kind       policyKind
	name       string // of an identity policy
	text       string
	statements []statement
}

type statement struct {
	label        string // for explanations: its number, from 1, and its Sid
	deny         bool
	principals   principals
	actions      []string // patterns, folded
	notActions   bool     // actions are those the statement does not apply to
	resources    []pattern
	notResources bool
	conditions   []condition
}

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

// parseKeyPolicy reads a key policy. It errs with MalformedPolicyDocumentException
// on anything it would not evaluate as AWS does, and with LimitExceededException
// above maxPolicy.
func parseKeyPolicy(document string) (*policy, error) {
	if len(document) > maxPolicy {
		return nil, faultf(codeLimitExceeded, "The policy document is larger than the quota of %d bytes.", maxPolicy)
	}
	return parsePolicy(keyPolicy, "", document)
}

func parsePolicy(kind policyKind, name, document string) (*policy, error) {
	p, err := readPolicy(kind, name, document)
	if err != nil {
		return nil, err
	}
	if err := unambiguous(document); err != nil {
		return nil, malformed("Policy contains invalid JSON: " + err.Error())
	}
	return p, nil
}

// readPolicy reads a policy as parsePolicy does, or as a program did that accepted
// more: what a journal holds is a policy whatever was decided about such since.
func readPolicy(kind policyKind, name, document string) (*policy, error) {
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
	p := &policy{kind: kind, name: name, text: document}
	for i, d := range doc.Statement {
		s, err := d.compile(kind, doc.Version == "2012-10-17")
		if err != nil {
			return nil, err
		}
		s.label = strconv.Itoa(i + 1)
		if d.Sid != "" {
			s.label += " (" + d.Sid + ")"
		}
		p.statements = append(p.statements, s)
	}
	return p, nil
}

func malformed(message string) error { return fault(codeMalformedPolicy, message) }

func strictJSON(document string, into any) error {
	d := json.NewDecoder(strings.NewReader(document))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// unambiguous refuses text behind a JSON document, and an object that has a member
// twice: Go takes the last of them, another reader may take the first.
func unambiguous(document string) error {
	d := json.NewDecoder(strings.NewReader(document))
	if err := membersOnce(d, true); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the end of the document")
	}
	return nil
}

// membersOnce reads one value. Go reads the elements of a policy in any case, so
// those are the same; within a Condition, each spelling of a key is a condition.
func membersOnce(d *json.Decoder, anyCase bool) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	opened, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		inside := anyCase
		if opened == '{' {
			token, err := d.Token()
			if err != nil {
				return err
			}
			name := token.(string) // the decoder takes nothing else here
			if anyCase {
				name = fold(name)
			}
			if seen[name] {
				return fmt.Errorf("an object has two members %q", token)
			}
			seen[name] = true
			inside = anyCase && name != "condition"
		}
		if err := membersOnce(d, inside); err != nil {
			return err
		}
	}
	_, err = d.Token() // of the end
	return err
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
	Sid         string
	Effect      string
	Principal   json.RawMessage
	Action      oneOrMore[string]
	NotAction   oneOrMore[string]
	Resource    oneOrMore[string]
	NotResource oneOrMore[string]
	Condition   conditionBlock
}

func (d *statementDoc) compile(kind policyKind, withVariables bool) (statement, error) {
	if d.Effect != "Allow" && d.Effect != "Deny" {
		return statement{}, malformed("Policy contains a statement whose Effect is neither Allow nor Deny.")
	}
	s := statement{
		deny:         d.Effect == "Deny",
		notActions:   len(d.NotAction) > 0,
		notResources: len(d.NotResource) > 0,
	}
	var err error
	if s.principals, err = d.compilePrincipals(kind); err != nil {
		return statement{}, err
	}
	if s.actions, err = d.compileActions(kind); err != nil {
		return statement{}, err
	}
	if s.resources, err = d.compileResources(kind, withVariables); err != nil {
		return statement{}, err
	}
	s.conditions, err = d.Condition.compile(withVariables)
	return s, err
}

// compilePrincipals: who a policy of an identity speaks of is whom it is attached
// to; every other has to say.
func (d *statementDoc) compilePrincipals(kind policyKind) (principals, error) {
	if kind == keyPolicy || kind == trustPolicy {
		return parsePrincipals(d.Principal)
	}
	if d.Principal != nil {
		return principals{}, malformed("Policy contains a statement with a Principal, which an " + string(kind) + " policy does not have.")
	}
	return principals{everyone: true}, nil
}

// servicePattern is an action of any service.
var servicePattern = regexp.MustCompile(`^[a-z0-9-]+:[a-z0-9*?]+$`)

func (d *statementDoc) compileActions(kind policyKind) ([]string, error) {
	if (len(d.Action) == 0) == (len(d.NotAction) == 0) {
		return nil, malformed("Policy contains a statement without exactly one of Action and NotAction.")
	}
	service := map[policyKind]string{keyPolicy: "kms:", trustPolicy: "sts:"}[kind]
	var actions []string
	for _, action := range slices.Concat(d.Action, d.NotAction) {
		folded := fold(action)
		switch {
		case action == "*":
		case !strings.HasPrefix(folded, service):
			return nil, malformed("Policy contains an action of another service: " + action)
		case service == "" && !servicePattern.MatchString(folded):
			return nil, malformed("Policy contains an invalid action: " + action)
		}
		actions = append(actions, folded)
	}
	return actions, nil
}

// compileResources: a trust policy is about the role that has it, and names none.
func (d *statementDoc) compileResources(kind policyKind, withVariables bool) ([]pattern, error) {
	none := len(d.Resource)+len(d.NotResource) == 0
	switch {
	case kind == trustPolicy && none:
		return []pattern{{text: "*"}}, nil
	case kind == trustPolicy:
		return nil, malformed("Policy contains a statement with a Resource, which a role trust policy does not have.")
	case none:
		return nil, malformed("Policy contains a statement without Resource.")
	case len(d.Resource) > 0 && len(d.NotResource) > 0:
		return nil, malformed("Policy contains a statement with both Resource and NotResource.")
	}
	var resources []pattern
	for _, resource := range slices.Concat(d.Resource, d.NotResource) {
		p, err := newPattern(resource, withVariables)
		if err != nil {
			return nil, err
		}
		resources = append(resources, p)
	}
	return resources, nil
}

// principals are the callers that a statement names.
type principals struct {
	everyone bool
	accounts []string // 12 digits
	arns     []string
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
