package aws_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/brokertest"
)

// A claim is a row of the table in docs/localkms.md, under "Where our knowledge
// comes from": text is its first column, word for word. It is shown by topics of
// the suite, or by a probe.
type claim struct {
	text   string
	topics []string
	probe  func(*probe)
}

func claims() []claim {
	return []claim{
		{text: "errors of KMS come as HTTP 400, whatever the code", probe: answersErrorsAs400},
		{text: "Decrypt with a wrong or missing context, or a damaged blob: InvalidCiphertextException, empty message", probe: refusesWrongContexts},
		{text: "Decrypt or ReEncrypt naming another key than the blob's: IncorrectKeyException, and its text", topics: []string{"WrongSource"}, probe: refusesOtherKeys},
		{text: `unknown key: NotFoundException "Key 'ARN' does not exist"; not a UUID: "Invalid keyId '…'"`, probe: findsNoUnknownKey},
		{text: `key ARN of another Region: NotFoundException "Invalid arn REGION"`, probe: findsNoKeyOfAnotherRegion},
		{text: "a DryRun that would succeed: DryRunOperationException, and its text", topics: []string{"CreateGrantDryRun", "ReEncryptDryRun"}, probe: answersDryRuns},
		{text: "plaintext above 4,096 bytes, and the form of ValidationException", probe: refusesLongPlaintext},
		{text: "members of KeyMetadata; KeyId of answers is an ARN", probe: describesTheKey},
		{text: "KeyMaterialId in answers", topics: []string{"GenerateDataKey", "ReEncrypt"}},
		{text: "form of AccessDeniedException's message", probe: explainsDenials},
		{text: `Subset and Equals in one constraint are refused, "More than one constraint supplied"`, probe: refusesTwoConstraints},
		{text: "who may use a key by a grant: operation, grantee, constraint", topics: []string{"GenerateDataKey", "ReEncrypt", "Denied"}},
		{text: "the same Name with the same parameters: the same GrantId, a new token", topics: []string{"GrantNames"}},
		{text: `a token makes a grant usable before it is consistent; "usually less than five minutes"`, topics: []string{"GrantTokens"}},
		{text: "on CreateGrant, `kms:EncryptionContext:…` conditions test the grant's constraint", topics: []string{"CreateGrant", "CreateGrantDryRun"}},
		{text: "ReEncrypt with one key for both sides is allowed", topics: []string{"ReEncrypt"}},
		{text: "DryRunModifiers IGNORE_CIPHERTEXT needs the key and no blob", topics: []string{"ReEncryptDryRun"}},
		{text: "RetireGrant of a grant that is gone: NotFoundException, or success; an id is never given again", topics: []string{"RetireGrant"}},
		{text: "what is no grant token: InvalidGrantTokenException", topics: []string{"GrantTokens"}},
		{text: "a token of a retired grant in GrantTokens does no harm", probe: usesTokenOfRetiredGrant},
		{text: "ListKeyPolicies with a marker: ValidationException, since it has one page and no InvalidMarkerException", probe: refusesMarkerOfPolicies},
		{text: "use of a disabled key: DisabledException \"ARN is disabled.\"", topics: []string{"Disabled"}},
		{text: "CreateGrant on a disabled key: DisabledException", topics: []string{"Disabled"}},
	}
}

// probe is one claim at work.
type probe struct {
	*testing.T
	*world
	me, registrar, worker *kms.Client
	pairs                 map[string]string
}

func (w *world) probe(t *testing.T, n int) *probe {
	t.Parallel()
	return &probe{
		T: t, world: w, me: w.client(w.caller.Credentials()), registrar: w.client(w.roles.Registrar), worker: w.client(w.roles.Worker),
		pairs: map[string]string{broker.DefaultReservedKey: fmt.Sprintf("Claim%021d", w.run*100+n)},
	}
}

// refused wants an error of a code and text; "" wants any text.
func (p *probe) refused(err error, code, text string) {
	p.Helper()
	var failure smithy.APIError
	if !errors.As(err, &failure) {
		p.Errorf("got %v, want %s", err, code)
		return
	}
	if failure.ErrorCode() != code || (text != "" && failure.ErrorMessage() != text) {
		p.Errorf("got %s %q, want %s %q", failure.ErrorCode(), failure.ErrorMessage(), code, text)
	}
}

func (p *probe) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// encrypt gives a blob under the old key.
func (p *probe) encrypt() []byte {
	p.Helper()
	out, err := p.me.Encrypt(p.Context(), &kms.EncryptInput{KeyId: &p.oldKey, Plaintext: []byte("a data key"), EncryptionContext: p.pairs})
	p.must(err)
	return out.CiphertextBlob
}

func (p *probe) unknownKey() string {
	prefix, _, _ := strings.Cut(p.oldKey, ":key/")
	return prefix + ":key/00000000-0000-4000-8000-000000000000"
}

func answersErrorsAs400(p *probe) {
	_, notFound := p.me.DescribeKey(p.Context(), &kms.DescribeKeyInput{KeyId: aws.String(p.unknownKey())})
	_, denied := p.worker.Encrypt(p.Context(), &kms.EncryptInput{KeyId: &p.oldKey, Plaintext: []byte("x")})
	for _, err := range []error{notFound, denied} {
		var response *smithyhttp.ResponseError
		if !errors.As(err, &response) || response.HTTPStatusCode() != http.StatusBadRequest {
			p.Errorf("%v: want HTTP 400", err)
		}
	}
}

func refusesWrongContexts(p *probe) {
	blob := p.encrypt()
	damaged := append([]byte{}, blob...)
	damaged[len(damaged)-1] ^= 1
	for what, in := range map[string]*kms.DecryptInput{
		"no context":      {CiphertextBlob: blob},
		"another context": {CiphertextBlob: blob, EncryptionContext: map[string]string{broker.DefaultReservedKey: "other"}},
		"damaged":         {CiphertextBlob: damaged, EncryptionContext: p.pairs},
	} {
		in.KeyId = &p.oldKey
		_, err := p.me.Decrypt(p.Context(), in)
		p.refused(err, "InvalidCiphertextException", "")
		var failure *types.InvalidCiphertextException
		if errors.As(err, &failure) && failure.ErrorMessage() != "" {
			p.Errorf("%s: got the message %q, want none", what, failure.ErrorMessage())
		}
	}
}

func refusesOtherKeys(p *probe) {
	_, err := p.me.Decrypt(p.Context(), &kms.DecryptInput{CiphertextBlob: p.encrypt(), EncryptionContext: p.pairs, KeyId: &p.newKey})
	p.refused(err, "IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
}

func findsNoUnknownKey(p *probe) {
	unknown := p.unknownKey()
	_, err := p.me.DescribeKey(p.Context(), &kms.DescribeKeyInput{KeyId: &unknown})
	p.refused(err, "NotFoundException", "Key '"+unknown+"' does not exist")
	_, err = p.me.DescribeKey(p.Context(), &kms.DescribeKeyInput{KeyId: aws.String("nothing")})
	p.refused(err, "NotFoundException", "Invalid keyId 'nothing'")
}

func findsNoKeyOfAnotherRegion(p *probe) {
	elsewhere := "us-east-1"
	if p.region() == elsewhere {
		elsewhere = "eu-west-1"
	}
	arn := strings.Replace(p.oldKey, ":"+p.region()+":", ":"+elsewhere+":", 1)
	_, err := p.me.DescribeKey(p.Context(), &kms.DescribeKeyInput{KeyId: &arn})
	p.refused(err, "NotFoundException", "Invalid arn "+elsewhere)
}

func answersDryRuns(p *probe) {
	_, err := p.me.Encrypt(p.Context(), &kms.EncryptInput{KeyId: &p.oldKey, Plaintext: []byte("x"), DryRun: aws.Bool(true)})
	p.refused(err, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
}

func refusesLongPlaintext(p *probe) {
	_, err := p.me.Encrypt(p.Context(), &kms.EncryptInput{KeyId: &p.oldKey, Plaintext: make([]byte, 4097)})
	p.refused(err, "ValidationException", "")
	const form = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"
	if err != nil && !strings.Contains(err.Error(), form) {
		p.Errorf("got %v, want %q", err, form)
	}
}

func describesTheKey(p *probe) {
	out, err := p.me.DescribeKey(p.Context(), &kms.DescribeKeyInput{KeyId: &p.oldKey})
	p.must(err)
	m := out.KeyMetadata
	if aws.ToString(m.Arn) != p.oldKey || !strings.HasSuffix(p.oldKey, "/"+aws.ToString(m.KeyId)) || aws.ToString(m.AWSAccountId) == "" ||
		m.CreationDate == nil || !m.Enabled || m.KeyState != types.KeyStateEnabled || m.KeyUsage != types.KeyUsageTypeEncryptDecrypt ||
		m.KeySpec != types.KeySpecSymmetricDefault || m.Origin != types.OriginTypeAwsKms || m.KeyManager != types.KeyManagerTypeCustomer ||
		aws.ToString(m.CurrentKeyMaterialId) == "" || len(m.EncryptionAlgorithms) != 1 {
		p.Errorf("got %+v", m)
	}
	encrypted, err := p.me.Encrypt(p.Context(), &kms.EncryptInput{KeyId: m.KeyId, Plaintext: []byte("x")})
	p.must(err)
	if aws.ToString(encrypted.KeyId) != p.oldKey {
		p.Errorf("KeyId of an answer: got %s", aws.ToString(encrypted.KeyId))
	}
}

func explainsDenials(p *probe) {
	_, err := p.worker.Encrypt(p.Context(), &kms.EncryptInput{KeyId: &p.oldKey, Plaintext: []byte("x")})
	p.refused(err, "AccessDeniedException", "")
	for _, part := range []string{"User: arn:", ":assumed-role/", " is not authorized to perform: kms:Encrypt on resource: " + p.oldKey + " because "} {
		if err != nil && !strings.Contains(err.Error(), part) {
			p.Errorf("got %v, want one with %q", err, part)
		}
	}
}

// grant is what the registrar may ask for.
func (p *probe) grant(name string) *kms.CreateGrantInput {
	return &kms.CreateGrantInput{
		KeyId: &p.oldKey, Name: aws.String(fmt.Sprintf("%s%d/claims/%s", brokertest.KMSGrantNames, p.run, name)),
		GranteePrincipal: aws.String(p.settings.worker), RetiringPrincipal: aws.String(p.settings.registrar),
		Operations:  []types.GrantOperation{types.GrantOperationDecrypt},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: p.pairs},
	}
}

func refusesTwoConstraints(p *probe) {
	in := p.grant("two")
	in.Constraints.EncryptionContextEquals = p.pairs
	_, err := p.registrar.CreateGrant(p.Context(), in)
	p.refused(err, "ValidationException", "")
	if err != nil && !strings.Contains(err.Error(), "More than one constraint supplied") {
		p.Errorf("got %v", err)
	}
}

func usesTokenOfRetiredGrant(p *probe) {
	made, err := p.registrar.CreateGrant(p.Context(), p.grant("token"))
	p.must(err)
	_, err = p.registrar.RetireGrant(p.Context(), &kms.RetireGrantInput{KeyId: &p.oldKey, GrantId: made.GrantId})
	p.must(err)
	p.wait(p.T)
	_, err = p.me.Encrypt(p.Context(), &kms.EncryptInput{KeyId: &p.oldKey, Plaintext: []byte("x"), GrantTokens: []string{*made.GrantToken}})
	p.must(err)
}

func refusesMarkerOfPolicies(p *probe) {
	_, err := p.me.ListKeyPolicies(p.Context(), &kms.ListKeyPoliciesInput{KeyId: &p.oldKey, Marker: aws.String("somewhere")})
	p.refused(err, "ValidationException", "")
}

func causeOf(err error) error { return errors.Unwrap(err) }
