package broker

import (
	"fmt"
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

// RequireReason checks why somebody asks for an act that must not happen without
// a reason.
func RequireReason(reason string) error {
	if reason == "" {
		return invalidField(ReasonFieldInvalid, "reason", "must have 1 to %d characters: it goes into the audit log", maxReason)
	}
	return validateReason(reason)
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

// CheckKeyARN holds what an ARN says of a key, or of an alias, against a domain:
// its partition, Region and account. Nobody needs to ask KMS for that.
func (b *Broker) CheckKeyARN(d Domain, arn string) error {
	reason, what := b.elsewhere(d, KeyARN(arn))
	if reason == "" {
		return nil
	}
	err := invalidField(reason, "kms_key", "%s", what)
	err.Resource = d.ID.Name()
	if reason == ReasonKeyAccountNotAllowed {
		err.Kind = ErrPrecondition // an operator may add the account
	}
	return err
}

// elsewhere says why a domain cannot have a key that is where it is, or nothing.
func (b *Broker) elsewhere(d Domain, key KeyARN) (reason Reason, what string) {
	partition := b.partition()
	switch {
	case key.Region() != d.Region || partitionOf(string(key)) != partition:
		return ReasonKeyRegionMismatch, fmt.Sprintf("the KMS key must be in the domain's Region %s (partition %s)", d.Region, partition)
	case len(d.KeyAccounts) > 0 && !slices.Contains(d.KeyAccounts, key.Account()):
		return ReasonKeyAccountNotAllowed, fmt.Sprintf("the KMS key belongs to account %s, which is not among the domain's key_accounts", key.Account())
	}
	return "", ""
}

// partition is the one of the broker's own roles: keys of another are out of
// their reach.
func (b *Broker) partition() string { return partitionOf(b.cfg.WorkerRole) }

// CheckKey holds what DescribeKey says of a key against a domain: a symmetric,
// enabled key of the domain's Region and of an account that may own it.
func (b *Broker) CheckKey(d Domain, m KeyMetadata) error {
	name := d.ID.Name()
	if reason, what := b.elsewhere(d, m.ARN); reason != "" {
		return precondition(reason, name, "%s", what)
	}
	switch {
	case m.KeyUsage != "ENCRYPT_DECRYPT" || m.KeySpec != "SYMMETRIC_DEFAULT":
		return precondition(ReasonKeyNotSymmetric, name, "the KMS key must be symmetric (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT), and this is %s, %s", m.KeySpec, m.KeyUsage)
	case m.KeyState == "Disabled":
		return precondition(ReasonKeyDisabled, name, "the KMS key is disabled: its owner can enable it")
	case m.KeyState != "Enabled":
		return precondition(ReasonKeyStateInvalid, name, "the KMS key is in state %s and cannot be used", m.KeyState)
	}
	return nil
}
