package localkms_test

import (
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// scenarios are what TestRules shows.
func scenarios() []scenario {
	all := policyScenarios()
	all = append(all, statementScenarios()...)
	all = append(all, grantScenarios()...)
	return append(all, otherScenarios()...)
}

const anything = "kms:*"

func policyScenarios() []scenario {
	home := to(customerAccount)
	encrypt := encrypts()
	return []scenario{
		{rule: "P1", what: "the key policy denies", who: ruleUser, identity: allow(anything), key: allow(anything, to(ruleUser)) + "," + deny("kms:Encrypt", to("*")), call: encrypt},
		{rule: "P1", what: "an identity policy denies", who: ruleUser, identity: deny("kms:Encrypt"), key: allow(anything, to(ruleUser)), call: encrypt},
		{rule: "P1", what: "a session policy denies", who: ruleRole, session: allow(anything) + "," + deny("kms:Encrypt"), key: allow(anything, to(ruleSession)), call: encrypt},
		{rule: "P1", what: "a deny beats a grant", who: ruleUser, identity: deny("kms:Encrypt"), grant: plainGrant, call: encrypt},
		{rule: "P1", what: "a deny of something else", who: ruleUser, identity: deny("kms:Decrypt"), key: allow(anything, to(ruleUser)), call: encrypt, allowed: true},
		{rule: "P2", what: "an identity policy alone", who: ruleUser, identity: allow(anything), call: encrypt},
		{rule: "P2", what: "the root alone", who: customerRoot, call: encrypt},
		{rule: "P3", what: "the account, and nothing else", who: ruleUser, key: allow(anything, home), call: encrypt},
		{rule: "P3", what: "the account and an identity policy", who: ruleUser, identity: allow("kms:Encrypt"), key: allow(anything, home), call: encrypt, allowed: true},
		{rule: "P3", what: "another action of the account's", who: ruleUser, identity: allow("kms:Encrypt"), key: allow("kms:Decrypt", home), call: encrypt},
		{rule: "P3", what: "the account by its ARN", who: ruleRole, identity: allow("kms:Encrypt"), key: allow(anything, to(customerRoot)), call: encrypt, allowed: true},
		{rule: "P4", what: "the user", who: ruleUser, key: allow("kms:Encrypt", to(ruleUser)), call: encrypt, allowed: true},
		{rule: "P4", what: "another user", who: ruleUser, key: allow("kms:Encrypt", to(admin)), call: encrypt},
		{rule: "P5", what: "the role", who: ruleRole, key: allow("kms:Encrypt", to(ruleRole)), call: encrypt, allowed: true},
		{rule: "P5", what: "the role, within a session policy", who: ruleRole, session: allow("kms:Enc*"), key: allow(anything, to(ruleRole)), call: encrypt, allowed: true},
		{rule: "P5", what: "the role, outside a session policy", who: ruleRole, session: allow("kms:Decrypt"), key: allow(anything, to(ruleRole)), call: encrypt},
		{rule: "P6", what: "the session, outside its session policy", who: ruleRole, session: allow("kms:Decrypt"), key: allow(anything, to(ruleSession)), call: encrypt, allowed: true},
		{rule: "P6", what: "another session", who: ruleRole, key: allow(anything, to(ruleSession+"x")), call: encrypt},
		{rule: "P7", what: "everyone", who: ruleUser, key: allow("kms:Encrypt", to("*")), call: encrypt, allowed: true},
		{rule: "P7", what: "everyone, outside a session policy", who: ruleRole, session: allow("kms:Decrypt"), key: allow("kms:Encrypt", to("*")), call: encrypt, allowed: true},
		{rule: "P8", what: "the root of the account", who: customerRoot, key: allow(anything, home), call: encrypt, allowed: true},
		{rule: "P8", what: "the root, on no key", who: customerRoot, call: lists, allowed: true},
		{rule: "P9", what: "within a session policy", who: ruleRole, identity: allow(anything), session: allow("kms:Encrypt"), key: allow(anything, home), call: encrypt, allowed: true},
		{rule: "P9", what: "outside a session policy", who: ruleRole, identity: allow(anything), session: allow("kms:Decrypt"), key: allow(anything, home), call: encrypt},
		{rule: "P9", what: "a session policy gives nothing", who: ruleRole, session: allow(anything), key: allow(anything, home), call: encrypt},
		{rule: "P10", what: "the user of another account alone", who: farUser, key: allow(anything, to(farUser)), call: encrypt},
		{rule: "P10", what: "the user of another account, and its policy", who: farUser, identity: allow("kms:Encrypt"), key: allow(anything, to(farUser)), call: encrypt, allowed: true},
		{rule: "P10", what: "another account, and its policy", who: farRole, identity: allow("kms:Encrypt"), key: allow(anything, to(brokerAccount)), call: encrypt, allowed: true},
		{rule: "P10", what: "another account's policy alone", who: farRole, identity: allow(anything), call: encrypt},
		{rule: "P10", what: "everyone, without a policy of its own", who: farUser, key: allow(anything, to("*")), call: encrypt},
		{rule: "P10", what: "the root of another account", who: brokerRoot, key: allow(anything, to(brokerAccount)), call: encrypt, allowed: true},
		{rule: "P11", what: "an identity policy", who: ruleUser, identity: allow("kms:ListKeys"), call: lists, allowed: true},
		{rule: "P11", what: "none", who: ruleUser, call: lists},
		{rule: "P11", what: "for one key", who: ruleUser, identity: `{"Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/*"}`, call: lists},
		{rule: "P11", what: "a key by default", who: ruleUser, identity: allow("kms:CreateKey"), call: creates(), allowed: true},
		{rule: "P11", what: "a key with tags", who: ruleUser, identity: allow("kms:CreateKey"), call: creates("team")},
		{rule: "P11", what: "a key with tags, and the right to tag", who: ruleUser, identity: allow("kms:CreateKey") + "," + allow("kms:TagResource"), call: creates("team"), allowed: true},
		{rule: "P11", what: "a key of another kind", who: ruleUser, identity: allow("kms:CreateKey", when(`"StringEquals":{"kms:KeySpec":"HMAC_256"}`)), call: creates()},
		{rule: "P12", what: "whatever policies say", who: farUser, identity: allow(anything), key: allow(anything, to("*")), call: makesAlias},
		{rule: "P12", what: "DisableKey too", who: farUser, identity: allow(anything), key: allow(anything, to("*")), call: disables},
		{rule: "P12", what: "at home", who: ruleUser, key: allow(anything, to(ruleUser)), call: disables, allowed: true},
		{rule: "P13", what: "key and alias", who: ruleUser, identity: allow("kms:CreateAlias"), key: allow("kms:CreateAlias", to(ruleUser)), call: makesAlias, allowed: true},
		{rule: "P13", what: "the key alone", who: ruleUser, key: allow("kms:CreateAlias", to(ruleUser)), call: makesAlias},
		{rule: "P13", what: "the alias alone", who: ruleUser, identity: allow("kms:CreateAlias"), call: makesAlias},
		{rule: "P13", what: "another alias", who: ruleUser, identity: `{"Effect":"Allow","Action":"kms:CreateAlias","Resource":"arn:aws:kms:*:*:alias/b"}`, key: allow("kms:CreateAlias", to(ruleUser)), call: makesAlias},
	}
}

// statementScenarios are about the parts of a statement; TestPolicyStatements and
// TestPolicyConditions have many more.
func statementScenarios() []scenario {
	home := allow(anything, to(customerAccount))
	as := func(rule, what, identity string, allowed bool, context ...string) scenario {
		return scenario{rule: rule, what: what, who: ruleUser, identity: identity, key: home, call: encrypts(context...), allowed: allowed}
	}
	on := func(condition string) string { return allow("kms:Encrypt", when(condition)) }
	resource := func(element string) string { return `{"Effect":"Allow","Action":"kms:*",` + element + `}` }
	return []scenario{
		as("S1", "wildcards, in any case", allow("KMS:e?cr*"), true),
		as("S1", "another service", allow("s3:*"), false),
		as("S1", "all but another", `{"Effect":"Allow","NotAction":"kms:Decrypt","Resource":"*"}`, true),
		as("S1", "all but this", `{"Effect":"Allow","NotAction":"kms:*","Resource":"*"}`, false),
		as("S2", "keys of the account", resource(`"Resource":"arn:aws:kms:*:111122223333:key/*"`), true),
		as("S2", "keys of another Region", resource(`"Resource":"arn:aws:kms:us-east-1:*:key/*"`), false),
		as("S2", "all but another's", resource(`"NotResource":"arn:aws:kms:*:444455556666:*"`), true),
		as("S2", "all but keys", resource(`"NotResource":"arn:aws:kms:*:*:key/*"`), false),
		as("S3", "all conditions", on(`"StringEquals":{"kms:EncryptionContext:a":"1","kms:CallerAccount":"111122223333"}`), true, "a", "1"),
		as("S3", "one condition of two", on(`"StringEquals":{"kms:EncryptionContext:a":"1","kms:CallerAccount":"444455556666"}`), false, "a", "1"),
		as("S3", "one value of two", on(`"StringEquals":{"kms:EncryptionContext:a":["0","1"]}`), true, "a", "1"),
		as("S3", "negated, one value of two", on(`"StringNotEquals":{"kms:EncryptionContext:a":["0","1"]}`), false, "a", "1"),
		as("S4", "absent", on(`"StringLike":{"kms:EncryptionContext:a":"*"}`), false),
		as("S4", "absent, negated", on(`"StringNotEquals":{"kms:EncryptionContext:a":"1"}`), true),
		as("S4", "absent, if it exists", on(`"StringEqualsIfExists":{"kms:EncryptionContext:a":"1"}`), true),
		as("S4", "a key that no request has", on(`"StringNotEquals":{"aws:SourceVpce":"vpce-1"}`), true),
		as("S5", "for all", on(`"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["a","b"]}`), true, "a", "1"),
		as("S5", "for all, one too many", on(`"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["a"]}`), false, "a", "1", "b", "2"),
		as("S5", "for all of none", on(`"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["a"]}`), true),
		as("S5", "for any", on(`"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":["a"]}`), true, "a", "1", "b", "2"),
		as("S5", "for any of none", on(`"ForAnyValue:StringNotEquals":{"kms:EncryptionContextKeys":["a"]}`), false),
		as("S6", "is null", on(`"Null":{"kms:EncryptionContextKeys":"true"}`), true),
		as("S6", "is not null", on(`"Null":{"kms:EncryptionContextKeys":"false"}`), false),
		as("S7", "key in other case", on(`"StringEquals":{"KMS:encryptioncontext:A":"x"}`), true, "a", "x"),
		as("S7", "value in other case", on(`"StringEquals":{"kms:EncryptionContext:a":"X"}`), false, "a", "x"),
		as("S7", "value in other case, ignored", on(`"StringEqualsIgnoreCase":{"kms:EncryptionContext:a":"X"}`), true, "a", "x"),
		as("S8", "number", on(`"NumericLessThan":{"kms:EncryptionContext:a":"10"}`), true, "a", "9"),
		as("S8", "date", on(`"DateLessThan":{"aws:CurrentTime":"2026-03-04T05:06:08Z"}`), true),
		as("S8", "date that has come", on(`"DateLessThan":{"aws:CurrentTime":"2026-03-04T05:06:07Z"}`), false),
		as("S8", "seconds", on(`"NumericGreaterThan":{"aws:EpochTime":"1772600000"}`), true),
		as("S8", "boolean", on(`"Bool":{"aws:SecureTransport":"false"}`), true),
		as("S8", "ARN", on(`"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/*"}`), true),
		as("S8", "ARN, parts apart", on(`"ArnLike":{"aws:PrincipalArn":"arn:aws:*:user/*"}`), false),
		as("S8", "address in process", on(`"NotIpAddress":{"aws:SourceIp":"127.0.0.0/8"}`), true),
		as("S9", "the user's name", on(`"StringEquals":{"kms:EncryptionContext:user":"${aws:username}"}`), true, "user", "ann"),
		as("S9", "another's name", on(`"StringEquals":{"kms:EncryptionContext:user":"${aws:username}"}`), false, "user", "bob"),
		as("S9", "no value", on(`"StringLike":{"kms:EncryptionContext:user":"${aws:TokenIssueTime}*"}`), false, "user", "x"),
		as("S9", "a default", on(`"StringEquals":{"kms:EncryptionContext:user":"${aws:TokenIssueTime, 'x'}"}`), true, "user", "x"),
		as("S9", "a star in a value", on(`"StringLike":{"kms:EncryptionContext:user":"${kms:EncryptionContext:name}"}`), false, "name", "\x00*", "user", "\x00x"),
		as("S9", "an ARN", on(`"ArnEquals":{"aws:PrincipalArn":"${aws:PrincipalArn}"}`), true),
		as("S9", "a part of an ARN", on(`"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::${aws:PrincipalAccount}:user/*"}`), true),
		as("S9", "a star that is none", on(`"StringLike":{"kms:EncryptionContext:user":"${*}"}`), false, "user", "x"),
	}
}

func grantScenarios() []scenario {
	subset := constrainedTo(types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")})
	equals := constrainedTo(types.GrantConstraints{EncryptionContextEquals: pairs("a", "1")})
	parent := func(in *kms.CreateGrantInput) {
		in.Operations = []types.GrantOperation{"CreateGrant", "Encrypt"}
		in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("a", "1")}
	}
	stricter := func(in *kms.CreateGrantInput) {
		parent(in)
		in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs("c", "3")}
	}
	return []scenario{
		{rule: "G1", what: "the grantee", who: ruleUser, grant: plainGrant, call: encrypts(), allowed: true},
		{rule: "G1", what: "somebody else", who: ruleUser, grant: granting(worker), call: encrypts()},
		{rule: "G1", what: "the session", who: ruleRole, session: allow("kms:Decrypt"), grant: granting(ruleSession), call: encrypts(), allowed: true},
		{rule: "G2", what: "another operation", who: ruleUser, grant: granting(ruleUser, "Decrypt"), call: encrypts()},
		{rule: "G3", what: "Subset, and more", who: ruleUser, grant: subset, call: encrypts("A", "1", "b", "2"), allowed: true},
		{rule: "G3", what: "Subset, another value", who: ruleUser, grant: subset, call: encrypts("a", "2")},
		{rule: "G3", what: "Equals", who: ruleUser, grant: equals, call: encrypts("a", "1"), allowed: true},
		{rule: "G3", what: "Equals, and more", who: ruleUser, grant: equals, call: encrypts("a", "1", "b", "2")},
		{rule: "G4", what: "DescribeKey", who: ruleUser, grant: equals, call: describes, allowed: true},
		{rule: "G5", what: "the role of a session", who: ruleRole, grant: plainGrant, call: encrypts(), allowed: true},
		{rule: "G5", what: "outside the session policy", who: ruleRole, session: allow("kms:Decrypt"), grant: plainGrant, call: encrypts()},
		{rule: "G6", what: "the account, and nothing else", who: farUser, grant: granting(brokerRoot), call: encrypts()},
		{rule: "G6", what: "the account, and an identity policy", who: farUser, identity: allow("kms:Encrypt"), grant: granting(brokerRoot), call: encrypts(), allowed: true},
		{rule: "G6", what: "the root of the account", who: brokerRoot, grant: granting(brokerRoot), call: encrypts(), allowed: true},
		{rule: "G7", what: "not seen yet", who: ruleUser, grant: plainGrant, slow: true, call: encrypts()},
		{rule: "G7", what: "by its token", who: ruleUser, grant: plainGrant, slow: true, call: encryptsByToken, allowed: true},
		{rule: "G8", what: "a grant within a grant", who: ruleUser, grant: parent, call: makesGrant("Encrypt"), allowed: true},
		{rule: "G8", what: "another operation", who: ruleUser, grant: parent, call: makesGrant("Encrypt", "Decrypt")},
		{rule: "G8", what: "a wider constraint", who: ruleUser, grant: stricter, call: makesGrant("Encrypt")},
		{rule: "G9", what: "a user of another account", who: farUser, grant: plainGrant, call: encrypts(), allowed: true},
		{rule: "G9", what: "a role of another account", who: farRole, grant: plainGrant, call: encrypts(), allowed: true},
	}
}

func otherScenarios() []scenario {
	retire := "kms:RetireGrant"
	trusting := func(principal string, rest ...string) string {
		s := `{"Effect":"Allow","Action":"sts:AssumeRole"` + to(principal)
		for _, r := range rest {
			s += r
		}
		return s + "}"
	}
	external := when(`"StringEquals":{"sts:ExternalId":"tenant-4711"}`)
	id := func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("tenant-4711") }
	return []scenario{
		{rule: "R1", what: "an identity policy denies", who: ruleUser, identity: deny(retire), grant: retiredBy(ruleUser), call: retires},
		{rule: "R1", what: "a key policy cannot", who: ruleUser, key: deny(retire, to("*")), grant: retiredBy(ruleUser), call: retires, allowed: true},
		{rule: "R2", what: "the retiring principal", who: farUser, grant: retiredBy(farUser), call: retires, allowed: true},
		{rule: "R2", what: "a session of it", who: farRole, grant: retiredBy(farRole), call: retires, allowed: true},
		{rule: "R2", what: "of the retiring account", who: farUser, grant: retiredBy(brokerRoot), call: retires},
		{rule: "R2", what: "of the retiring account, which lets it", who: farUser, identity: allow(retire), grant: retiredBy(brokerRoot), call: retires, allowed: true},
		{rule: "R2", what: "nobody's", who: farUser, identity: allow(retire), grant: retiredBy(registrar), call: retires},
		{rule: "R3", what: "a grantee", who: farUser, grant: plainGrant, call: retires},
		{rule: "R3", what: "a grantee with RetireGrant", who: farUser, grant: granting(farUser, "RetireGrant"), call: retires, allowed: true},
		{rule: "R4", what: "the root of the key's account", who: customerRoot, grant: retiredBy(registrar), call: retires, allowed: true},
		{rule: "R4", what: "a user of it", who: ruleUser, grant: retiredBy(registrar), call: retires},
		{rule: "R4", what: "a user of it, whom it lets", who: ruleUser, identity: allow(retire), grant: retiredBy(registrar), call: retires, allowed: true},
		{rule: "R4", what: "a key policy cannot let", who: ruleUser, key: allow(retire, to(ruleUser)), grant: retiredBy(registrar), call: retires},
		{rule: "T1", what: "the user", who: ruleUser, trust: trusting(ruleUser), call: assumes(), allowed: true},
		{rule: "T1", what: "the account alone", who: ruleUser, trust: trusting(customerAccount), call: assumes()},
		{rule: "T1", what: "the account, and an identity policy", who: ruleUser, identity: allow("sts:AssumeRole"), trust: trusting(customerAccount), call: assumes(), allowed: true},
		{rule: "T1", what: "another account's user alone", who: farUser, trust: trusting(farUser), call: assumes()},
		{rule: "T1", what: "another account's user, and its policy", who: farUser, identity: allow("sts:AssumeRole"), trust: trusting(farUser), call: assumes(), allowed: true},
		{rule: "T1", what: "ExternalId", who: farUser, identity: allow("sts:*"), trust: trusting(brokerAccount, external), call: assumes(id), allowed: true},
		{rule: "T1", what: "no ExternalId", who: farUser, identity: allow("sts:*"), trust: trusting(brokerAccount, external), call: assumes()},
		{rule: "T2", what: "a root", who: customerRoot, trust: trusting("*"), call: assumes()},
	}
}
