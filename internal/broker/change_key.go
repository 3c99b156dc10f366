package broker

import (
	"slices"
	"unicode/utf8"
)

// maxReason bounds the text that people give for an audited act, in characters;
// ours.
const maxReason = 512

// validateReason checks why somebody asks for an audited act; "" is allowed.
func validateReason(reason string) error {
	if utf8.RuneCountInString(reason) > maxReason {
		return invalidField(ReasonFieldInvalid, "reason", "must have at most %d characters", maxReason)
	}
	return nil
}

// ValidateKeyChange checks what a ChangeKey call says of the key: a full key or
// alias ARN (ids and alias names mean another key in another account), and a
// reason.
func ValidateKeyChange(kmsKey, reason string) error {
	if _, ok := parseKeyARN(kmsKey); !ok {
		return invalidField(ReasonKeyARNInvalid, "kms_key", "must be a full KMS key ARN or alias ARN (arn:aws:kms:REGION:ACCOUNT:key/ID)")
	}
	return validateReason(reason)
}

// CheckKey holds what DescribeKey says of a key against a domain: a symmetric,
// enabled key of the domain's Region and of an account that may own it.
func CheckKey(d Domain, m KeyMetadata) error {
	name := d.ID.Name()
	switch {
	case m.KeyUsage != "ENCRYPT_DECRYPT" || m.KeySpec != "SYMMETRIC_DEFAULT":
		return precondition(ReasonKeyNotSymmetric, name, "the KMS key must be symmetric (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT), and this is %s, %s", m.KeySpec, m.KeyUsage)
	case m.ARN.Region() != d.Region:
		return precondition(ReasonKeyRegionMismatch, name, "the KMS key must be in the domain's Region %s", d.Region)
	case len(d.KeyAccounts) > 0 && !slices.Contains(d.KeyAccounts, m.ARN.Account()):
		return precondition(ReasonKeyAccountNotAllowed, name, "the KMS key belongs to account %s, which is not among the domain's key_accounts", m.ARN.Account())
	case m.KeyState == "Disabled":
		return precondition(ReasonKeyDisabled, name, "the KMS key is disabled: its owner can enable it")
	case m.KeyState != "Enabled":
		return precondition(ReasonKeyStateInvalid, name, "the KMS key is in state %s and cannot be used", m.KeyState)
	}
	return nil
}
