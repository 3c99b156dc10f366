package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// PolicyProfile says which statements a key policy gets.
type PolicyProfile string

// The profiles.
const (
	// PolicyStandard lets the registrar describe the key, see its grants, and
	// make grants bound to the domain's reserved pair.
	PolicyStandard PolicyProfile = "STANDARD"
	// PolicyImportSource lets the worker move blobs that were made under this key
	// with a legacy context, away from it. It is removed after the import.
	PolicyImportSource PolicyProfile = "IMPORT_SOURCE"
)

// KeyPolicyRequest is a GenerateKeyPolicy call: either a new document for a key
// of KeyAccount, or ours merged into Existing.
type KeyPolicyRequest struct {
	Domain        DomainID
	KeyAccount    string
	Existing      string
	Profile       PolicyProfile
	ImportContext Context // the pairs that every legacy blob has; with PolicyImportSource
}

// A KeyPolicy is a complete key policy, and our statements alone.
type KeyPolicy struct {
	Document   string
	Statements []string
	Version    string
}

const (
	// keyPolicyVersion changes with the text of the statements.
	keyPolicyVersion = "1"
	// maxKeyPolicy is KMS's limit in bytes (KMS Developer Guide, Key policies).
	maxKeyPolicy = 32768
	// Sids of the statements that all domains on a key share; their text is the
	// same for each, so one serves them all.
	sidDescribe   = "KeybrokerDescribeKey"
	sidListGrants = "KeybrokerListGrants"
)

// statementElements are what a statement may have (IAM User Guide, IAM JSON
// policy elements reference).
var statementElements = []string{"Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource",
	"NotResource", "Condition"}

type policyStatement struct {
	Sid       string                    `json:"Sid"`
	Effect    string                    `json:"Effect"`
	Principal map[string]string         `json:"Principal"`
	Action    any                       `json:"Action"`
	Resource  string                    `json:"Resource"`
	Condition map[string]map[string]any `json:"Condition,omitempty"`
}

// GenerateKeyPolicy renders the policy that a key needs to serve a domain. The
// customer's own statements are kept as they are; only this domain's and the
// shared ones are replaced.
func (b *Broker) GenerateKeyPolicy(ctx context.Context, caller Caller, in KeyPolicyRequest) (KeyPolicy, error) {
	d, _, err := b.GetDomain(ctx, caller, in.Domain)
	if err != nil {
		return KeyPolicy{}, err
	}
	if (in.KeyAccount == "") == (in.Existing == "") {
		return KeyPolicy{}, invalidField(ReasonFieldInvalid, "key_account", "give either key_account, for a new document, or existing_policy_document")
	}
	if in.KeyAccount != "" && !accountPattern.MatchString(in.KeyAccount) {
		return KeyPolicy{}, invalidField(ReasonFieldInvalid, "key_account", "must be an AWS account id of 12 digits")
	}
	ours, replaced, err := b.statementsFor(d, in)
	if err != nil {
		return KeyPolicy{}, err
	}
	doc := policyDocument{Version: "2012-10-17"}
	if in.Existing != "" {
		if doc, err = parsePolicy(in.Existing); err != nil {
			return KeyPolicy{}, err
		}
	} else {
		doc.Statement = append(doc.Statement, mustJSON(b.rootStatement(in.KeyAccount)))
	}
	doc.Statement = slices.DeleteFunc(doc.Statement, func(raw json.RawMessage) bool { return replaced(sidOf(raw)) })
	policy := KeyPolicy{Version: keyPolicyVersion}
	for _, s := range ours {
		raw := mustJSON(s)
		doc.Statement = append(doc.Statement, raw)
		policy.Statements = append(policy.Statements, string(raw))
	}
	policy.Document = string(mustJSON(doc))
	if len(policy.Document) > maxKeyPolicy {
		return KeyPolicy{}, precondition(ReasonPolicyTooLarge, d.ID.Name(),
			"the policy would have %d bytes, and KMS allows %d: use a key of its own for this domain", len(policy.Document), maxKeyPolicy)
	}
	return policy, nil
}

// statementsFor gives our statements and tells which Sids they replace.
func (b *Broker) statementsFor(d Domain, in KeyPolicyRequest) ([]policyStatement, func(sid string) bool, error) {
	own := "Keybroker" + string(d.UID)
	if in.Profile == PolicyImportSource {
		s, err := b.importStatement(d, own, in.ImportContext)
		return []policyStatement{s}, func(sid string) bool { return sid == s.Sid }, err
	}
	if len(in.ImportContext) > 0 {
		return nil, nil, invalidField(ReasonFieldInvalid, "import_source_context", "goes with profile IMPORT_SOURCE only")
	}
	registrar := map[string]string{"AWS": b.cfg.RegistrarRole}
	statements := []policyStatement{
		{Sid: sidDescribe, Effect: "Allow", Principal: registrar, Action: "kms:DescribeKey", Resource: "*"},
		{Sid: sidListGrants, Effect: "Allow", Principal: registrar, Action: "kms:ListGrants", Resource: "*"},
		{Sid: own + "CreateGrant", Effect: "Allow", Principal: registrar, Action: "kms:CreateGrant", Resource: "*",
			Condition: b.grantCondition(d)},
	}
	return statements, func(sid string) bool {
		return sid == sidDescribe || sid == sidListGrants || strings.HasPrefix(sid, own)
	}, nil
}

// grantCondition pins what the registrar may grant: only for this domain's
// reserved pair, only the operations that grants may have, only to the worker
// and to roles of the accounts that grantees live in, and only retirable by us.
func (b *Broker) grantCondition(d Domain) map[string]map[string]any {
	operations := slices.Sorted(maps.Keys(wrapOperations))
	operations = append(operations, slices.Sorted(maps.Keys(unwrapOperations))...)
	operations = append(operations, describeKey)
	grantees := []string{b.cfg.WorkerRole}
	for _, a := range b.cfg.GranteeAccounts {
		grantees = append(grantees, fmt.Sprintf("arn:%s:iam::%s:role/*", partitionOf(b.cfg.WorkerRole), a))
	}
	return map[string]map[string]any{
		"StringEquals": {
			"kms:EncryptionContext:" + d.Reserved.Key: d.Reserved.Value,
			"kms:GrantConstraintType":                 []string{"EncryptionContextSubset", "EncryptionContextEquals"},
			"kms:RetiringPrincipal":                   b.cfg.RegistrarRole,
		},
		"StringLike":                {"kms:GranteePrincipal": grantees},
		"ForAllValues:StringEquals": {"kms:GrantOperations": operations},
	}
}

func (b *Broker) importStatement(d Domain, own string, legacy Context) (policyStatement, error) {
	if len(legacy) == 0 {
		return policyStatement{}, invalidField(ReasonFieldInvalid, "import_source_context",
			"must name the pairs that the legacy blobs were made with: a statement without a condition would let any tenant import them")
	}
	if err := validateContext("import_source_context", legacy, d.Reserved); err != nil {
		return policyStatement{}, err
	}
	equals := map[string]any{}
	for key, value := range legacy {
		if b.reserved(fold(key)) {
			return policyStatement{}, invalidField(ReasonContextKeyReserved, "import_source_context", "key %q is reserved", key)
		}
		if strings.Contains(value, "${") {
			return policyStatement{}, invalidField(ReasonContextValueInvalid, "import_source_context",
				"the value of key %q holds a policy variable, which would stand for any value: name another pair", key)
		}
		equals["kms:EncryptionContext:"+key] = value
	}
	return policyStatement{Sid: own + "ImportSource", Effect: "Allow", Principal: map[string]string{"AWS": b.cfg.WorkerRole},
		Action: "kms:ReEncryptFrom", Resource: "*", Condition: map[string]map[string]any{"StringEquals": equals}}, nil
}

// rootStatement is AWS's default: the key's account keeps control of its key.
func (b *Broker) rootStatement(account string) policyStatement {
	root := fmt.Sprintf("arn:%s:iam::%s:root", partitionOf(b.cfg.RegistrarRole), account)
	return policyStatement{Sid: "EnableIAMUserPermissions", Effect: "Allow", Principal: map[string]string{"AWS": root},
		Action: "kms:*", Resource: "*"}
}

// policyDocument keeps the customer's statements as the bytes they came in, less
// the white space between them: KMS's limit counts bytes.
type policyDocument struct {
	Version   string            `json:"Version"`
	ID        string            `json:"Id,omitempty"`
	Statement []json.RawMessage `json:"Statement"`
}

// parsePolicy reads a customer's document. Statement may be one object or a
// list (IAM User Guide, Grammar of the IAM JSON policy language).
func parsePolicy(text string) (policyDocument, error) {
	refuse := func(what string) (policyDocument, error) {
		return policyDocument{}, invalidField(ReasonPolicyDocumentInvalid, "existing_policy_document", "%s", what)
	}
	if len(text) > maxKeyPolicy {
		return refuse(fmt.Sprintf("has more than KMS's %d bytes", maxKeyPolicy))
	}
	var doc policyDocument
	top, ok := elements([]byte(text), "Version", "Id", "Statement")
	if !ok || !textOf(top["Version"], &doc.Version) || !textOf(top["Id"], &doc.ID) {
		return refuse("must be a JSON key policy with Version, Id and Statement only, each once")
	}
	raw := bytes.TrimSpace(top["Statement"])
	if len(raw) == 0 {
		return refuse("must have a Statement")
	}
	if raw[0] == '{' {
		raw = slices.Concat([]byte{'['}, raw, []byte{']'})
	}
	if raw[0] != '[' || json.Unmarshal(raw, &doc.Statement) != nil {
		return refuse("its Statement must be an object or a list of objects")
	}
	for _, s := range doc.Statement {
		if _, ok := elements(s, statementElements...); !ok {
			return refuse("each Statement must be an object of a key policy's elements, each once")
		}
	}
	if doc.Version == "" {
		doc.Version = "2008-10-17" // what AWS assumes of a document without one
	}
	return doc, nil
}

// elements reads a JSON object that has no other members than those named, and
// none twice. Go would take the last of two, and any spelling of a name: what it
// reads could then be another policy than the one that KMS reads.
func elements(object []byte, names ...string) (map[string]json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	members := map[string]json.RawMessage{}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok || members[name] != nil || !slices.Contains(names, name) {
			return nil, false
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return nil, false
		}
		members[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, false
	}
	_, err := dec.Token()
	return members, errors.Is(err, io.EOF)
}

// textOf reads a JSON string that may be absent.
func textOf(raw json.RawMessage, to *string) bool {
	return raw == nil || (raw[0] == '"' && json.Unmarshal(raw, to) == nil)
}

func sidOf(statement json.RawMessage) string {
	var sid string
	if members, _ := elements(statement, statementElements...); !textOf(members["Sid"], &sid) {
		return ""
	}
	return sid
}

// mustJSON marshals what cannot fail: strings, lists and valid raw messages.
// HTML escaping would change the customer's bytes, so it is off.
func mustJSON(v any) json.RawMessage {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil
	}
	return bytes.TrimSpace(out.Bytes())
}
