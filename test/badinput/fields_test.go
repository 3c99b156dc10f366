package badinput_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/keybroker/keybroker/proto/keybroker/v1"
	"github.com/keybroker/keybroker/test/harness"
)

// TestBadGrantees: a grant goes to one IAM role of a listed account (T3). The
// forms are those of the IAM User Guide, IAM identifiers, and AWS JSON policy
// elements: Principal.
func TestBadGrantees(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	for what, principal := range map[string]string{
		"none":                        "",
		"a user":                      "arn:aws:iam::222233334444:user/orders",
		"a session":                   "arn:aws:sts::222233334444:assumed-role/orders/session",
		"a federated user":            "arn:aws:sts::222233334444:federated-user/orders",
		"a whole account":             "arn:aws:iam::222233334444:root",
		"an account id":               "222233334444",
		"a service":                   "s3.amazonaws.com",
		"a service-linked principal":  "arn:aws:iam::222233334444:saml-provider/orders",
		"everybody":                   "*",
		"every role":                  "arn:aws:iam::222233334444:role/*",
		"any one letter":              "arn:aws:iam::222233334444:role/order?",
		"a role of another account":   "arn:aws:iam::444455556666:role/orders",
		"a role of the customer":      "arn:aws:iam::111122223333:role/orders",
		"a role of another partition": "arn:aws-cn:iam::222233334444:role/orders",
		"a role in a Region":          "arn:aws:iam:us-east-1:222233334444:role/orders",
		"a role's unique id":          "AROADBQP57FF2AEXAMPLE",
		"a group":                     "arn:aws:iam::222233334444:group/orders",
		"an instance profile":         "arn:aws:iam::222233334444:instance-profile/orders",
		"our registrar":               harness.RegistrarRole,
		"our worker":                  harness.WorkerRole,
		"our worker in capitals":      strings.Replace(harness.WorkerRole, "keybroker-worker", "KEYBROKER-WORKER", 1),
		"a name of 65 characters":     "arn:aws:iam::222233334444:role/" + strings.Repeat("a", 65),
		"257 characters":              "arn:aws:iam::222233334444:role/" + strings.Repeat("a/", 200) + "orders",
		"a space behind":              harness.ServiceRole + " ",
		"a line end":                  harness.ServiceRole + "\n",
	} {
		calls = append(calls, badCall{what, "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.Grant.GranteePrincipal = principal }),
			invalid("GRANTEE_NOT_ALLOWED", "grant.grantee_principal")})
	}
	w.run(calls)
}

// TestBadOperations: grants hold KMS's operations on data, in its spelling. The
// others of GrantOperation (KMS API Reference, CreateGrant, Operations) are never
// given.
func TestBadOperations(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	for _, op := range []string{"", "*", "kms:Decrypt", "decrypt", "DECRYPT", "Decrypt ", "ReEncrypt", "ReEncrypt*", "CreateGrant", "RetireGrant",
		"RevokeGrant", "Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "DeriveSharedSecret", "ScheduleKeyDeletion", "PutKeyPolicy"} {
		calls = append(calls, badCall{op, "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.Grant.Operations = []string{"Decrypt", op} }),
			invalid("OPERATION_NOT_ALLOWED", "grant.operations[1]")})
	}
	of := func(ops ...string) func(proto.Message) {
		return spoiling(func(m *pb.CreateGrantRequest) { m.Grant.Operations = ops })
	}
	w.run(append(calls,
		badCall{"none", "CreateGrant", of(), invalid("OPERATION_NOT_ALLOWED", "grant.operations")},
		badCall{"one twice", "CreateGrant", of("Decrypt", "Decrypt"), invalid("OPERATION_NOT_ALLOWED", "grant.operations")}))
}

// TestBadGrants: what else a grant may have wrong.
func TestBadGrants(t *testing.T) {
	w := newWorld(t, harness.Config{})
	grant := func(change func(*pb.Grant)) func(proto.Message) {
		return spoiling(func(m *pb.CreateGrantRequest) { change(m.Grant) })
	}
	calls := []badCall{
		{"none at all", "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.Grant = nil }), invalid("FIELD_INVALID", "grant")},
		{"both constraints", "CreateGrant", grant(func(g *pb.Grant) {
			g.Constraints = &pb.Grant_Constraints{EncryptionContextSubset: pairs(1), EncryptionContextEquals: pairs(1)}
		}), invalid("CONSTRAINT_INVALID", "grant.constraints")},
		{"a domain without a key", "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.Parent = "domains/pending" }), refusal{Code: codes.FailedPrecondition, Reason: "DOMAIN_PENDING_KEY"}},
		{"a domain without a key", "CreateDataKey", spoiling(func(m *pb.CreateDataKeyRequest) { m.Parent = "domains/pending" }), refusal{Code: codes.FailedPrecondition, Reason: "DOMAIN_PENDING_KEY"}},
		{"a domain without a key", "ImportDataKeys", spoiling(func(m *pb.ImportDataKeysRequest) { m.Parent = "domains/pending" }), refusal{Code: codes.FailedPrecondition, Reason: "DOMAIN_PENDING_KEY"}},
		{"a domain without a key", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.Parent = "domains/pending" }), refusal{Code: codes.FailedPrecondition, Reason: "DOMAIN_PENDING_KEY"}},
	}
	for what, ttl := range map[string]*durationpb.Duration{
		"none":                                nil,
		"zero":                                {},
		"negative":                            durationpb.New(-time.Hour),
		"59 seconds":                          durationpb.New(59 * time.Second),
		"a nanosecond too little":             durationpb.New(time.Minute - 1),
		"a nanosecond too much":               durationpb.New(365*24*time.Hour + 1),
		"366 days":                            durationpb.New(366 * 24 * time.Hour),
		"more than a Duration holds":          {Seconds: 1 << 62},
		"less than a Duration holds":          {Seconds: -1 << 62},
		"a negative part of a second":         {Seconds: 60, Nanos: -1},
		"10,000 years, the proto's own limit": {Seconds: 315_576_000_001},
	} {
		calls = append(calls,
			badCall{"ttl: " + what, "CreateGrant", grant(func(g *pb.Grant) { g.Ttl = ttl }), invalid("FIELD_INVALID", "grant.ttl")},
			badCall{"ttl: " + what, "RenewGrant", spoiling(func(m *pb.RenewGrantRequest) { m.Ttl = ttl }), invalid("FIELD_INVALID", "ttl")})
	}
	w.run(calls)
}

// TestUnknownEnumValues: a value that this version does not know is refused, and
// not taken for the default.
func TestUnknownEnumValues(t *testing.T) {
	w := newWorld(t, harness.Config{})
	w.run([]badCall{
		{"99", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.Domain.KeySource = 99 }), invalid("FIELD_INVALID", "domain.key_source")},
		{"-1", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.Domain.KeySource = -1 }), invalid("FIELD_INVALID", "domain.key_source")},
		{"99", "GenerateKeyPolicy", spoiling(func(m *pb.GenerateKeyPolicyRequest) { m.Profile = 99 }), invalid("FIELD_INVALID", "profile")},
		{"99", "CreateGrant", spoiling(func(m *pb.CreateGrantRequest) { m.Grant.Inventory = 99 }), invalid("FIELD_INVALID", "grant.inventory")},
		{"99", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.ReencryptionJob.Kind = 99 }), invalid("FIELD_INVALID", "reencryption_job.kind")},
		{"none", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.ReencryptionJob.Kind = 0 }), invalid("FIELD_INVALID", "reencryption_job.kind")},
		{"a key change", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.ReencryptionJob.Kind = pb.ReencryptionJob_KIND_KEY_CHANGE }), invalid("FIELD_INVALID", "reencryption_job.kind")},
		{"no job", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.ReencryptionJob = nil }), invalid("FIELD_INVALID", "reencryption_job")},
	})
}

// TestUnknownMasks: an update that names what it cannot change changes nothing,
// not even what it can.
func TestUnknownMasks(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	mask := func(paths ...string) func(proto.Message) {
		return spoiling(func(m *pb.UpdateDomainRequest) { m.UpdateMask = &fieldmaskpb.FieldMask{Paths: paths} })
	}
	for _, path := range []string{"", "*", "name", "uid", "region", "state", "key_source", "encryption_context", "previous_keys", "etag", "create_time",
		"no_such_field", "displayName", "display_name.x", "labels.tier", "domain.display_name", "DISPLAY_NAME", "display_name,labels"} {
		calls = append(calls, badCall{path, "UpdateDomain", mask("display_name", path), invalid("FIELD_INVALID", "update_mask")})
	}
	w.run(append(calls,
		badCall{"the key", "UpdateDomain", mask("display_name", "kms_key"), invalid("KEY_CHANGED_BY_CHANGE_KEY", "update_mask")},
		badCall{"no domain", "UpdateDomain", spoiling(func(m *pb.UpdateDomainRequest) { m.Domain = nil }), invalid("FIELD_INVALID", "domain")}))
}

// TestBadDomainFields: the other fields of a domain, of a policy and of a job.
func TestBadDomainFields(t *testing.T) {
	w := newWorld(t, harness.Config{})
	var calls []badCall
	domain := func(name, field, reason string, change func(*pb.Domain)) {
		calls = append(calls,
			badCall{name, "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { change(m.Domain) }), invalid(reason, field)},
			badCall{name, "UpdateDomain", spoiling(func(m *pb.UpdateDomainRequest) { change(m.Domain) }), invalid(reason, field)})
	}
	labels := map[string]string{}
	for k := range pairs(33) {
		labels[k] = ""
	}
	domain("129 characters", "domain.display_name", "FIELD_INVALID", func(d *pb.Domain) { d.DisplayName = strings.Repeat("é", 129) })
	domain("U+0000 in the name", "domain.display_name", "FIELD_INVALID", func(d *pb.Domain) { d.DisplayName = "a\x00b" })
	domain("U+0000 in a label", `domain.labels["tier"]`, "FIELD_INVALID", func(d *pb.Domain) { d.Labels = map[string]string{"tier": "\x00"} })
	domain("33 labels", "domain.labels", "FIELD_INVALID", func(d *pb.Domain) { d.Labels = labels })
	domain("a label in capitals", `domain.labels["Tier"]`, "FIELD_INVALID", func(d *pb.Domain) { d.Labels = map[string]string{"Tier": "x"} })
	domain("a label of 257 characters", `domain.labels["tier"]`, "FIELD_INVALID", func(d *pb.Domain) { d.Labels = map[string]string{"tier": strings.Repeat("x", 257)} })
	domain("21 accounts", "domain.key_accounts", "FIELD_INVALID", func(d *pb.Domain) {
		for i := range 21 {
			d.KeyAccounts = append(d.KeyAccounts, strings.Repeat("1", 10)+string(rune('0'+i/10))+string(rune('0'+i%10)))
		}
	})
	domain("an account twice", "domain.key_accounts", "FIELD_INVALID", func(d *pb.Domain) { d.KeyAccounts = []string{"111122223333", "111122223333"} })
	domain("a source twice", "domain.import_source_keys", "FIELD_INVALID", func(d *pb.Domain) { d.ImportSourceKeys = []string{string(w.key), string(w.key)} })
	for what, region := range map[string]string{"none": "", "a zone": "us-east-1a", "words": "Frankfurt", "all": "*", "in capitals": "US-EAST-1", "a host": "us-east-1.amazonaws.com"} {
		calls = append(calls, badCall{"region: " + what, "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.Domain.Region = region }), invalid("FIELD_INVALID", "domain.region")})
	}
	calls = append(calls,
		badCall{"U+0000 in the reason", "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.Reason = "\x00" }), invalid("FIELD_INVALID", "reason")},
		badCall{"U+0000 in the reason", "RevokeGrant", spoiling(func(m *pb.RevokeGrantRequest) { m.Reason = "\x00" }), invalid("FIELD_INVALID", "reason")},
		badCall{"U+0000 in the reason", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.ReencryptionJob.Reason = "\x00" }), invalid("FIELD_INVALID", "reencryption_job.reason")})
	policy := func(text string) func(proto.Message) {
		return spoiling(func(m *pb.GenerateKeyPolicyRequest) {
			m.Base = &pb.GenerateKeyPolicyRequest_ExistingPolicyDocument{ExistingPolicyDocument: text}
		})
	}
	for what, text := range map[string]string{"none": "", "words": "allow everything", "a list": "[]", "no statement": "{}", "two documents": `{"Statement":[]}{"Statement":[]}`,
		"an unknown element": `{"Statement":[],"Comment":"x"}`, "a member twice": `{"Statement":[],"Statement":[]}`, "32,769 bytes": `{"Statement":[]}` + strings.Repeat(" ", 32769-16)} {
		calls = append(calls, badCall{"policy: " + what, "GenerateKeyPolicy", policy(text), invalid("POLICY_DOCUMENT_INVALID", "existing_policy_document")})
	}
	long := strings.Repeat("é", 513)
	calls = append(calls,
		badCall{"no domain", "CreateDomain", spoiling(func(m *pb.CreateDomainRequest) { m.Domain = nil }), invalid("FIELD_INVALID", "domain")},
		badCall{"no base", "GenerateKeyPolicy", spoiling(func(m *pb.GenerateKeyPolicyRequest) { m.Base = nil }), invalid("FIELD_INVALID", "base")},
		badCall{"an account that is none", "GenerateKeyPolicy", spoiling(func(m *pb.GenerateKeyPolicyRequest) {
			m.Base = &pb.GenerateKeyPolicyRequest_KeyAccount{KeyAccount: "1"}
		}), invalid("FIELD_INVALID", "key_account")},
		badCall{"a policy that grows too large", "GenerateKeyPolicy", policy(`{"Statement":[{"Sid":"` + strings.Repeat("x", 32000) + `"}]}`), refusal{Code: codes.FailedPrecondition, Reason: "POLICY_TOO_LARGE"}},
		badCall{"no context", "GenerateKeyPolicy", spoiling(func(m *pb.GenerateKeyPolicyRequest) { m.Profile = pb.GenerateKeyPolicyRequest_PROFILE_IMPORT_SOURCE }), invalid("FIELD_INVALID", "import_source_context")},
		badCall{"a context too many", "GenerateKeyPolicy", spoiling(func(m *pb.GenerateKeyPolicyRequest) { m.ImportSourceContext = pairs(1) }), invalid("FIELD_INVALID", "import_source_context")},
		badCall{"a policy variable", "GenerateKeyPolicy", spoiling(func(m *pb.GenerateKeyPolicyRequest) {
			m.Profile, m.ImportSourceContext = pb.GenerateKeyPolicyRequest_PROFILE_IMPORT_SOURCE, map[string]string{"tenant": "${aws:username}"}
		}), invalid("CONTEXT_VALUE_INVALID", "import_source_context")},
		badCall{"rows without crypto_shred", "DeleteDomain", spoiling(func(m *pb.DeleteDomainRequest) { m.Name = "domains/acme" }), refusal{Code: codes.FailedPrecondition, Reason: "DOMAIN_NOT_EMPTY"}},
		badCall{"crypto_shred without a reason", "DeleteDomain", spoiling(func(m *pb.DeleteDomainRequest) { m.CryptoShred = true }), invalid("FIELD_INVALID", "reason")},
		badCall{"the key that it has", "ChangeKey", spoiling(func(m *pb.ChangeKeyRequest) { m.KmsKey = string(w.key) }), refusal{Code: codes.FailedPrecondition, Reason: "KEY_UNCHANGED"}},
		badCall{"no reason", "AcknowledgeReencryptionFailures", spoiling(func(m *pb.AcknowledgeReencryptionFailuresRequest) { m.Reason = "" }), invalid("FIELD_INVALID", "reason")},
		badCall{"a job reason of 513 characters", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.ReencryptionJob.Reason = long }), invalid("FIELD_INVALID", "reencryption_job.reason")},
		badCall{"a job beside another", "CreateReencryptionJob", spoiling(func(m *pb.CreateReencryptionJobRequest) { m.Parent = "domains/changing" }), refusal{Code: codes.Aborted, Reason: "KEY_CHANGE_IN_PROGRESS"}},
		badCall{"one that has ended", "PauseReencryptionJob", spoiling(func(m *pb.PauseReencryptionJobRequest) { m.Name = w.acmeJob }), refusal{Code: codes.FailedPrecondition, Reason: "JOB_ENDED"}},
		badCall{"one that has ended", "ResumeReencryptionJob", spoiling(func(m *pb.ResumeReencryptionJobRequest) { m.Name = w.acmeJob }), refusal{Code: codes.FailedPrecondition, Reason: "JOB_ENDED"}},
		badCall{"one that has ended", "CancelReencryptionJob", spoiling(func(m *pb.CancelReencryptionJobRequest) { m.Name = w.acmeJob }), refusal{Code: codes.FailedPrecondition, Reason: "JOB_ENDED"}},
	)
	for _, m := range methods() {
		f := m.Input().Fields().ByName("reason")
		if f == nil {
			continue
		}
		in := w.good(m.Name())
		in.ProtoReflect().Set(f, textValue(long))
		w.refused(string(m.Name())+" with a reason of 513 characters", m.Name(), in, invalid("FIELD_INVALID", "reason"))
	}
	w.run(calls)
}
