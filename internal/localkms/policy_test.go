package localkms_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keybroker/keybroker/internal/localkms"
)

// document returns a policy of testdata without its comment line.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	_, policy, found := bytes.Cut(text, []byte("\n"))
	if !found || !bytes.HasPrefix(text, []byte("// ")) {
		t.Fatalf("%s does not begin with a comment on its origin", name)
	}
	return string(policy)
}

// The policies of the AWS documentation do what their pages say.
func TestDocumentedPolicies(t *testing.T) {
	const (
		exampleRole  = "arn:aws:iam::111122223333:role/ExampleRole"
		readOnlyRole = "arn:aws:iam::111122223333:role/ExampleReadOnlyRole"
		domainKey    = "aws:voiceid:domain:arn"
		domainARN    = "arn:aws:voiceid:us-west-2:111122223333:domain/sampleDomainId"
	)
	var principals []localkms.Principal
	for _, arn := range []string{admin, exampleRole, readOnlyRole} {
		principals = append(principals, localkms.Principal{ARN: arn, AccessKeyID: accessKeyOf(arn), SecretAccessKey: secretOf(arn)})
	}
	h := newKMS(t, localkms.Config{Principals: principals})
	grantWith := func(c *types.GrantConstraints) func(*kms.Client, string) error {
		return func(client *kms.Client, key string) error {
			in := decryptGrant(key, exampleRole)
			in.Constraints = c
			_, err := client.CreateGrant(t.Context(), in)
			return err
		}
	}
	for _, tc := range []struct {
		file, caller, what string
		call               func(*kms.Client, string) error
		allowed            bool
	}{
		{"transcribe_color.json", exampleRole, "encrypt with the color", encryptWith(t, pairs("color", "indig0Blu3")), true},
		{"transcribe_color.json", exampleRole, "encrypt with the color among others", encryptWith(t, pairs("color", "indig0Blu3", "size", "L")), true},
		{"transcribe_color.json", exampleRole, "encrypt with the key in other case", encryptWith(t, pairs("Color", "indig0Blu3")), true},
		{"transcribe_color.json", exampleRole, "encrypt with the value in other case", encryptWith(t, pairs("color", "indig0blu3")), false},
		{"transcribe_color.json", exampleRole, "encrypt without context", encryptWith(t, nil), false},
		{"transcribe_color.json", exampleRole, "make a data key with the color", dataKeyWith(t, pairs("color", "indig0Blu3")), true},
		{"transcribe_color.json", exampleRole, "describe the key, which has no context", describe(t), false},
		{"transcribe_color.json", readOnlyRole, "encrypt with the color", encryptWith(t, pairs("color", "indig0Blu3")), false},
		{"voiceid_grant.json", readOnlyRole, "describe the key", describe(t), true},
		{"voiceid_grant.json", readOnlyRole, "grant by subset", grantWith(&types.GrantConstraints{EncryptionContextSubset: pairs(domainKey, domainARN)}), true},
		{"voiceid_grant.json", readOnlyRole, "grant by equals", grantWith(&types.GrantConstraints{EncryptionContextEquals: pairs(domainKey, domainARN)}), true},
		{"voiceid_grant.json", readOnlyRole, "grant for another domain", grantWith(&types.GrantConstraints{EncryptionContextSubset: pairs(domainKey, domainARN+"2")}), false},
		{"voiceid_grant.json", readOnlyRole, "grant without constraint", grantWith(nil), false},
		{"voiceid_grant.json", readOnlyRole, "encrypt for the domain", encryptWith(t, pairs(domainKey, domainARN)), false},
		{"voiceid_grant.json", exampleRole, "describe the key", describe(t), false},
		{"voiceid_access.json", exampleRole, "describe the key, not through the service", describe(t), false},
	} {
		t.Run(tc.file+"/"+tc.what, func(t *testing.T) {
			key := newKey(t, h, document(t, tc.file))
			wantAllowed(t, tc.call(as(h, tc.caller), key), tc.allowed)
		})
	}
}

func wantAllowed(t *testing.T, err error, allowed bool) {
	t.Helper()
	want := "AccessDeniedException"
	if allowed {
		want = ""
	}
	wantCode(t, err, want)
}

func encryptWith(t *testing.T, context map[string]string) func(*kms.Client, string) error {
	return func(c *kms.Client, key string) error {
		_, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionContext: context})
		return err
	}
}

func dataKeyWith(t *testing.T, context map[string]string) func(*kms.Client, string) error {
	return func(c *kms.Client, key string) error {
		_, err := c.GenerateDataKeyWithoutPlaintext(t.Context(), &kms.GenerateDataKeyWithoutPlaintextInput{
			KeyId: &key, KeySpec: types.DataKeySpecAes256, EncryptionContext: context,
		})
		return err
	}
}

func describe(t *testing.T) func(*kms.Client, string) error {
	return func(c *kms.Client, key string) error {
		_, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key})
		return err
	}
}

// Principals, actions and effects: IAM User Guide, "IAM JSON policy elements
// reference"; AWS KMS Developer Guide, "Key policies in AWS KMS".
func TestPolicyStatements(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	allow := func(principal, action string) string {
		return `{"Effect":"Allow","Principal":` + principal + `,"Action":` + action + `,"Resource":"*"}`
	}
	deny := func(principal, action string) string {
		return strings.Replace(allow(principal, action), "Allow", "Deny", 1)
	}
	const everyone = `"*"`
	for name, tc := range map[string]struct {
		statements string
		caller     string
		allowed    bool
	}{
		"everyone":                       {allow(everyone, `"kms:*"`), stranger, true},
		"everyone as AWS":                {allow(`{"AWS":"*"}`, `"kms:*"`), stranger, true},
		"account root":                   {allow(`{"AWS":"`+brokerRoot+`"}`, `"kms:*"`), worker, true},
		"account id":                     {allow(`{"AWS":"444455556666"}`, `"kms:*"`), worker, true},
		"another account":                {allow(`{"AWS":"444455556666"}`, `"kms:*"`), stranger, false},
		"role":                           {allow(`{"AWS":"`+worker+`"}`, `"kms:*"`), worker, true},
		"another role":                   {allow(`{"AWS":"`+worker+`"}`, `"kms:*"`), registrar, false},
		"list of roles":                  {allow(`{"AWS":["`+registrar+`","`+worker+`"]}`, `"kms:*"`), worker, true},
		"service":                        {allow(`{"Service":"logs.us-west-2.amazonaws.com"}`, `"kms:*"`), worker, false},
		"action":                         {allow(everyone, `"kms:Encrypt"`), worker, true},
		"action in other case":           {allow(everyone, `"KMS:encrypt"`), worker, true},
		"another action":                 {allow(everyone, `"kms:Decrypt"`), worker, false},
		"list of actions":                {allow(everyone, `["kms:Decrypt","kms:Encrypt"]`), worker, true},
		"trailing wildcard":              {allow(everyone, `"kms:Enc*"`), worker, true},
		"wildcard that matches another":  {allow(everyone, `"kms:ReEncrypt*"`), worker, false},
		"every action":                   {allow(everyone, `"*"`), worker, true},
		"explicit deny":                  {allow(everyone, `"kms:*"`) + "," + deny(`{"AWS":"`+worker+`"}`, `"kms:Encrypt"`), worker, false},
		"deny before allow":              {deny(everyone, `"kms:Encrypt"`) + "," + allow(everyone, `"kms:*"`), worker, false},
		"deny of the account":            {allow(everyone, `"kms:*"`) + "," + deny(`{"AWS":"444455556666"}`, `"kms:*"`), worker, false},
		"deny of another":                {allow(everyone, `"kms:*"`) + "," + deny(`{"AWS":"`+registrar+`"}`, `"kms:*"`), worker, true},
		"deny of another action":         {allow(everyone, `"kms:*"`) + "," + deny(everyone, `"kms:Decrypt"`), worker, true},
		"all but other actions":          {`{"Effect":"Allow","Principal":"*","NotAction":"kms:Decrypt","Resource":"*"}`, worker, true},
		"all but this action":            {`{"Effect":"Allow","Principal":"*","NotAction":"kms:Enc*","Resource":"*"}`, worker, false},
		"another key as resource":        {`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/other"}`, worker, false},
		"resource by wildcard":           {`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":["arn:aws:kms:*:111122223333:key/*"]}`, worker, true},
		"two statements, one that helps": {allow(`{"AWS":"`+registrar+`"}`, `"kms:*"`) + "," + allow(`{"AWS":"`+worker+`"}`, `"kms:E*"`), worker, true},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t, h, `{"Version":"2012-10-17","Statement":[`+tc.statements+`]}`)
			wantAllowed(t, encryptWith(t, nil)(as(h, tc.caller), key), tc.allowed)
		})
	}
}

// IAM User Guide, "Condition operators" and "Single-valued vs. multivalued context
// keys"; AWS KMS Developer Guide, "AWS KMS condition keys".
func TestPolicyConditions(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	grant := func(change func(*kms.CreateGrantInput)) func(*kms.Client, string) error {
		return func(c *kms.Client, key string) error {
			in := decryptGrant(key, worker)
			change(in)
			_, err := c.CreateGrant(t.Context(), in)
			return err
		}
	}
	plain := grant(func(*kms.CreateGrantInput) {})
	operations := func(ops ...types.GrantOperation) func(*kms.Client, string) error {
		return grant(func(in *kms.CreateGrantInput) { in.Operations = ops })
	}
	constrained := func(c types.GrantConstraints) func(*kms.Client, string) error {
		return grant(func(in *kms.CreateGrantInput) { in.Constraints = &c })
	}
	retiring := grant(func(in *kms.CreateGrantInput) { in.RetiringPrincipal = aws.String(registrar) })
	context := func(kv ...string) func(*kms.Client, string) error { return encryptWith(t, pairs(kv...)) }
	const (
		tenant = `{"StringEquals":{"kms:EncryptionContext:tenant":["a","b"]}}`
		keys   = `"kms:EncryptionContextKeys":["tenant","env"]`
		ops    = `{"ForAllValues:StringEquals":{"kms:GrantOperations":["Decrypt","Encrypt"]}}`
	)
	for _, tc := range []struct {
		condition string
		call      func(*kms.Client, string) error
		what      string
		allowed   bool
	}{
		{tenant, context("tenant", "a"), "first value", true},
		{tenant, context("TENANT", "b"), "key in other case", true},
		{tenant, context("tenant", "B"), "value in other case", false},
		{tenant, context(), "absent", false},
		{tenant, describe(t), "operation without context", false},
		{`{"StringNotEquals":{"kms:EncryptionContext:tenant":"a"}}`, context("tenant", "a"), "equal", false},
		{`{"StringNotEquals":{"kms:EncryptionContext:tenant":"a"}}`, context("tenant", "b"), "unequal", true},
		{`{"StringNotEquals":{"kms:EncryptionContext:tenant":"a"}}`, context(), "absent", true},
		{`{"StringEqualsIfExists":{"kms:EncryptionContext:tenant":"a"}}`, context(), "absent", true},
		{`{"StringEqualsIfExists":{"kms:EncryptionContext:tenant":"a"}}`, context("tenant", "b"), "unequal", false},
		{`{"StringLike":{"kms:EncryptionContext:tenant":"a*z?"}}`, context("tenant", "abcz1"), "like", true},
		{`{"StringLike":{"kms:EncryptionContext:tenant":"a*z?"}}`, context("tenant", "abcz"), "unlike", false},
		{`{"StringNotLike":{"kms:EncryptionContext:tenant":"a*"}}`, context("tenant", "abc"), "like", false},
		{`{"StringEqualsIgnoreCase":{"kms:EncryptionContext:tenant":"A"}}`, context("tenant", "a"), "equal but for case", true},
		{`{"Null":{"kms:EncryptionContext:tenant":"true"}}`, context(), "absent", true},
		{`{"Null":{"kms:EncryptionContext:tenant":"false"}}`, context(), "absent", false},
		{`{"Null":{"kms:EncryptionContext:tenant":false}}`, context("tenant", "x"), "present", true},
		{`{"NumericLessThanEquals":{"kms:EncryptionContext:level":"7"}}`, context("level", "7"), "equal", true},
		{`{"NumericLessThanEquals":{"kms:EncryptionContext:level":7}}`, context("level", "8"), "greater", false},
		{`{"NumericLessThanEquals":{"kms:EncryptionContext:level":7}}`, context("level", "x"), "no number", false},

		{`{"ForAllValues:StringEquals":{` + keys + `}}`, context("tenant", "x", "env", "y"), "all among", true},
		{`{"ForAllValues:StringEquals":{` + keys + `}}`, context("tenant", "x", "other", "y"), "one not among", false},
		{`{"ForAllValues:StringEquals":{` + keys + `}}`, context("Tenant", "x"), "in other case", false},
		{`{"ForAllValues:StringEquals":{` + keys + `}}`, context(), "none", true},
		{`{"ForAnyValue:StringEquals":{` + keys + `}}`, context("tenant", "x", "other", "y"), "one among", true},
		{`{"ForAnyValue:StringEquals":{` + keys + `}}`, context("other", "y"), "none among", false},
		{`{"ForAnyValue:StringEquals":{` + keys + `}}`, context(), "none", false},
		{`{"Null":{"kms:EncryptionContextKeys":"false"},"ForAllValues:StringEquals":{` + keys + `}}`, context(), "both, none", false},
		{`{"Null":{"kms:EncryptionContextKeys":"false"},"ForAllValues:StringEquals":{` + keys + `}}`, context("env", "x"), "both, one", true},

		{ops, operations("Decrypt"), "fewer operations", true},
		{ops, operations("Encrypt", "Decrypt"), "the operations", true},
		{ops, operations("Decrypt", "CreateGrant"), "one operation too many", false},
		{`{"StringEquals":{"kms:GranteePrincipal":"` + worker + `"}}`, plain, "grantee", true},
		{`{"StringEquals":{"kms:GranteePrincipal":"` + registrar + `"}}`, plain, "another grantee", false},
		{`{"StringEquals":{"kms:RetiringPrincipal":"` + registrar + `"}}`, retiring, "retirer", true},
		{`{"StringEquals":{"kms:RetiringPrincipal":"` + registrar + `"}}`, plain, "no retirer", false},
		{`{"StringEquals":{"kms:GrantConstraintType":"EncryptionContextSubset"}}`, constrained(types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}), "subset", true},
		{`{"StringEquals":{"kms:GrantConstraintType":"EncryptionContextSubset"}}`, constrained(types.GrantConstraints{EncryptionContextEquals: pairs("a", "1")}), "equals", false},
		{`{"StringEquals":{"kms:GrantConstraintType":"EncryptionContextSubset"}}`, plain, "no constraint", false},
		{tenant, constrained(types.GrantConstraints{EncryptionContextSubset: pairs("Tenant", "a")}), "grant with the pair as subset", true},
		{tenant, constrained(types.GrantConstraints{EncryptionContextEquals: pairs("tenant", "b", "x", "y")}), "grant with the pair as equals", true},
		{tenant, constrained(types.GrantConstraints{EncryptionContextSubset: pairs("tenant", "c")}), "grant with another value", false},
		{tenant, plain, "grant without", false},
		{`{"Bool":{"kms:GrantIsForAWSResource":"true"}}`, plain, "not for an AWS resource", false},
		{`{"BoolIfExists":{"kms:GrantIsForAWSResource":"false"}}`, plain, "not for an AWS resource, if exists", true},

		{`{"StringEquals":{"kms:CallerAccount":"444455556666"}}`, context(), "caller's account", true},
		{`{"StringEquals":{"kms:CallerAccount":"111122223333"}}`, context(), "another account", false},
		{`{"StringEquals":{"aws:PrincipalAccount":"444455556666"}}`, context(), "principal's account", true},
		{`{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::444455556666:role/Reg*"}}`, context(), "principal's ARN", true},
		{`{"StringEquals":{"aws:principalarn":"` + worker + `"}}`, context(), "another principal's ARN", false},
		{`{"StringEquals":{"kms:ViaService":"s3.us-west-2.amazonaws.com"}}`, context(), "not via a service", false},
		{`{"StringNotEquals":{"kms:ViaService":"s3.us-west-2.amazonaws.com"}}`, context(), "not via this service", true},
		{`{"StringEquals":{"aws:SourceVpce":"vpce-1"}}`, context(), "unknown key", false},
		{`{"StringNotEquals":{"aws:SourceVpce":"vpce-1"}}`, context(), "unknown key, negated", true},
		{`{"StringEquals":{"kms:CallerAccount":"444455556666","kms:EncryptionContext:a":"1"}}`, context("a", "1"), "both keys", true},
		{`{"StringEquals":{"kms:CallerAccount":"444455556666","kms:EncryptionContext:a":"1"}}`, context("a", "2"), "one of two keys", false},
	} {
		t.Run(tc.condition+" "+tc.what, func(t *testing.T) {
			key := newKey(t, h, `{"Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Condition":`+tc.condition+`}]}`)
			wantAllowed(t, tc.call(as(h, registrar), key), tc.allowed)
		})
	}
}

// ReEncrypt asks each key for its half, with the context of that half (AWS KMS API
// Reference, ReEncrypt, Required permissions; Developer Guide,
// kms:ReEncryptOnSameKey).
func TestReEncryptAuthorization(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	half := func(action, condition string) string {
		return `{"Statement":[{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"},
			{"Effect":"Allow","Principal":{"AWS":"` + worker + `"},"Action":"` + action + `","Resource":"*","Condition":` + condition + `}]}`
	}
	const (
		ifOld  = `{"StringEquals":{"kms:EncryptionContext:c":"old"}}`
		ifNew  = `{"StringEquals":{"kms:EncryptionContext:c":"new"}}`
		always = `{}`
	)
	for name, tc := range map[string]struct {
		from, to string // policies; no "to" means the same key
		denied   string
	}{
		"both halves":                {half("kms:ReEncryptFrom", ifOld), half("kms:ReEncryptTo", ifNew), ""},
		"ReEncrypt*":                 {half("kms:ReEncrypt*", always), half("kms:ReEncrypt*", always), ""},
		"no source":                  {half("kms:Decrypt", always), half("kms:ReEncryptTo", always), "ReEncryptFrom"},
		"no destination":             {half("kms:ReEncryptFrom", always), half("kms:Encrypt", always), "ReEncryptTo"},
		"source by its context":      {half("kms:ReEncryptFrom", ifNew), half("kms:ReEncryptTo", always), "ReEncryptFrom"},
		"destination by its context": {half("kms:ReEncryptFrom", always), half("kms:ReEncryptTo", ifOld), "ReEncryptTo"},
		"same key":                   {half("kms:ReEncrypt*", always), "", ""},
		"same key, one half":         {half("kms:ReEncryptFrom", always), "", "ReEncryptTo"},
		"only on the same key":       {half("kms:ReEncrypt*", `{"Bool":{"kms:ReEncryptOnSameKey":"true"}}`), "", ""},
		"only on the same key, other": {half("kms:ReEncrypt*", `{"Bool":{"kms:ReEncryptOnSameKey":"true"}}`),
			half("kms:ReEncrypt*", always), "ReEncryptFrom"},
	} {
		t.Run(name, func(t *testing.T) {
			from := newKey(t, h, tc.from)
			to := from
			if tc.to != "" {
				to = newKey(t, h, tc.to)
			}
			blob := must[*kms.EncryptOutput](t)(as(h, admin).Encrypt(t.Context(),
				&kms.EncryptInput{KeyId: &from, Plaintext: []byte("x"), EncryptionContext: pairs("c", "old")})).CiphertextBlob
			_, err := as(h, worker).ReEncrypt(t.Context(), &kms.ReEncryptInput{
				CiphertextBlob: blob, SourceKeyId: &from, DestinationKeyId: &to,
				SourceEncryptionContext: pairs("c", "old"), DestinationEncryptionContext: pairs("c", "new"),
			})
			wantAllowed(t, err, tc.denied == "")
			if tc.denied != "" && !strings.Contains(err.Error(), "perform: kms:"+tc.denied+" on resource") {
				t.Errorf("the refusal is not about %s: %v", tc.denied, err)
			}
		})
	}
}

// An explicit deny wins over a grant, and each refusal says which kind it is.
func TestAccessDeniedMessages(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	refused := func(policy, caller string, granted bool) (key string, err error) {
		key = newKey(t, h, policy)
		if granted {
			in := decryptGrant(key, caller)
			in.Operations = []types.GrantOperation{types.GrantOperationEncrypt}
			must[*kms.CreateGrantOutput](t)(as(h, admin).CreateGrant(t.Context(), in))
		}
		return key, encryptWith(t, nil)(as(h, caller), key)
	}
	only := func(arn string) string {
		return `{"Statement":{"Effect":"Allow","Principal":{"AWS":"` + arn + `"},"Action":"kms:*","Resource":"*"}}`
	}
	denying := strings.Replace(brokerPolicy, `"Statement": [`, `"Statement": [{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"},`, 1)
	for name, tc := range map[string]struct {
		policy, caller string
		granted        bool
		why            string
	}{
		"same account":    {only(admin), colleague, false, "because no resource-based policy allows the kms:Encrypt action"},
		"other account":   {only(admin), worker, false, "because no resource-based policy allows the kms:Encrypt action"},
		"denied":          {denying, admin, false, "with an explicit deny in a resource-based policy"},
		"denied, granted": {denying, worker, true, "with an explicit deny in a resource-based policy"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := refused(tc.policy, tc.caller, tc.granted)
			wantRefusal(t, err, "AccessDeniedException",
				"User: "+tc.caller+" is not authorized to perform: kms:Encrypt on resource: "+key+" "+tc.why)
		})
	}
}

// AWS KMS API Reference, PutKeyPolicy and GetKeyPolicy.
func TestKeyPolicyDocuments(t *testing.T) {
	h := newKMS(t, localkms.Config{})
	key, c, ctx := newKey(t, h, ""), as(h, admin), t.Context()
	get := func() string {
		return *must[*kms.GetKeyPolicyOutput](t)(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &key})).Policy
	}
	if policy := get(); !json.Valid([]byte(policy)) || !strings.Contains(policy, customerRoot) || !strings.Contains(policy, `"kms:*"`) {
		t.Errorf("default policy:\n%s", policy)
	}
	must[*kms.PutKeyPolicyOutput](t)(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &key, Policy: aws.String(brokerPolicy), PolicyName: aws.String("default")}))
	if get() != brokerPolicy {
		t.Error("the policy is not given back as it was put")
	}
	_, err := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &key, PolicyName: aws.String("other")})
	wantRefusal(t, err, "NotFoundException", "No such policy exists")

	statement := func(rest string) string {
		return `{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"` + rest + `}}`
	}
	const invalidPrincipal = "Policy contains a statement with one or more invalid principals."
	for name, tc := range map[string]struct {
		policy string
		want   refusal
	}{
		"not JSON":          {`{"Statement":`, refusal{"MalformedPolicyDocumentException", "Policy contains invalid JSON: unexpected EOF"}},
		"trailing text":     {statement("") + "x", refusal{"MalformedPolicyDocumentException", "Policy contains invalid JSON: text after the end of the document"}},
		"one brace more":    {statement("") + "}", refusal{"MalformedPolicyDocumentException", "Policy contains invalid JSON: text after the end of the document"}},
		"one bracket more":  {statement("") + "]", refusal{"MalformedPolicyDocumentException", "Policy contains invalid JSON: text after the end of the document"}},
		"two policies":      {statement("") + statement(""), refusal{"MalformedPolicyDocumentException", "Policy contains invalid JSON: text after the end of the document"}},
		"two effects":       {statement(`,"Effect":"Allow"`), refusal{"MalformedPolicyDocumentException", `Policy contains invalid JSON: an object has two members "Effect"`}},
		"in other case":     {statement(`,"resource":"*"`), refusal{"MalformedPolicyDocumentException", `Policy contains invalid JSON: an object has two members "resource"`}},
		"two operators":     {statement(`,"Condition":{"StringEquals":{"a":"b"},"StringEquals":{"c":"d"}}`), refusal{"MalformedPolicyDocumentException", `Policy contains invalid JSON: an object has two members "StringEquals"`}},
		"two of a key":      {statement(`,"Condition":{"StringEquals":{"a":"b","a":["b"]}}`), refusal{"MalformedPolicyDocumentException", `Policy contains invalid JSON: an object has two members "a"`}},
		"unknown element":   {statement(`,"Conditions":{}`), refusal{"MalformedPolicyDocumentException", `Policy contains invalid JSON: json: unknown field "Conditions"`}},
		"no statement":      {`{"Version":"2012-10-17","Statement":[]}`, refusal{"MalformedPolicyDocumentException", "Policy contains no statement."}},
		"version":           {`{"Version":"2020-01-01","Statement":[]}`, refusal{"MalformedPolicyDocumentException", "Policy contains an unknown version."}},
		"effect":            {strings.Replace(statement(""), "Allow", "allow", 1), refusal{"MalformedPolicyDocumentException", "Policy contains a statement whose Effect is neither Allow nor Deny."}},
		"no resource":       {strings.Replace(statement(""), `,"Resource":"*"`, "", 1), refusal{"MalformedPolicyDocumentException", "Policy contains a statement without Resource."}},
		"no action":         {strings.Replace(statement(""), `,"Action":"kms:*"`, "", 1), refusal{"MalformedPolicyDocumentException", "Policy contains a statement without exactly one of Action and NotAction."}},
		"other service":     {strings.Replace(statement(""), "kms:*", "s3:GetObject", 1), refusal{"MalformedPolicyDocumentException", "Policy contains an action of another service: s3:GetObject"}},
		"no principal":      {strings.Replace(statement(""), `"Principal":"*",`, "", 1), refusal{"MalformedPolicyDocumentException", invalidPrincipal}},
		"bad principal":     {strings.Replace(statement(""), `"Principal":"*"`, `"Principal":{"AWS":"your_user_or_role_ARN"}`, 1), refusal{"MalformedPolicyDocumentException", invalidPrincipal}},
		"wildcard in ARN":   {strings.Replace(statement(""), `"Principal":"*"`, `"Principal":{"AWS":"arn:aws:iam::111122223333:role/*"}`, 1), refusal{"MalformedPolicyDocumentException", invalidPrincipal}},
		"operator":          {statement(`,"Condition":{"StringMatches":{"a":"b"}}`), refusal{"MalformedPolicyDocumentException", "Policy contains an unsupported condition operator: StringMatches"}},
		"bool value":        {statement(`,"Condition":{"Bool":{"a":"maybe"}}`), refusal{"MalformedPolicyDocumentException", "Policy contains an invalid value for Bool: maybe"}},
		"number value":      {statement(`,"Condition":{"NumericEquals":{"a":"x"}}`), refusal{"MalformedPolicyDocumentException", "Policy contains an invalid value for NumericEquals: x"}},
		"overly permissive": {statement(`,"Condition":{"ForAllValues:StringEquals":{"kms:EncryptionContext:a":"b"}}`), refusal{"MalformedPolicyDocumentException", "OverlyPermissiveCondition: Using the ForAllValues set operator with a single-valued condition key matches requests without the specified [encryption context or tag] or with an unspecified [encryption context or tag]. To fix, remove ForAllValues."}},
		"lock-out":          {strings.Replace(statement(""), "kms:*", "kms:Encrypt", 1), refusal{"MalformedPolicyDocumentException", "The new key policy will not allow you to update the key policy in the future."}},
		"too long":          {statement("") + strings.Repeat(" ", 32768), refusal{"LimitExceededException", "The policy document is larger than the quota of 32768 bytes."}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &key, Policy: &tc.policy})
			wantRefusal(t, err, tc.want.code, tc.want.message)
			_, err = c.CreateKey(ctx, &kms.CreateKeyInput{Policy: &tc.policy})
			wantRefusal(t, err, tc.want.code, tc.want.message)
		})
	}
	if get() != brokerPolicy {
		t.Error("a refused policy was kept")
	}
	must[*kms.PutKeyPolicyOutput](t)(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{
		KeyId: &key, Policy: aws.String(strings.Replace(statement(""), "kms:*", "kms:Encrypt", 1)), BypassPolicyLockoutSafetyCheck: true,
	}))
	_, err = c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &key})
	wantCode(t, err, "AccessDeniedException")
}
