package grpcapi

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"buf.build/go/protovalidate"

	"github.com/keybroker/keybroker/internal/broker"
)

// invalid turns what protovalidate found into a use case's kind of error, so
// that both look alike to callers.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	var found *protovalidate.ValidationError
	if !errors.As(err, &found) {
		return fmt.Errorf("evaluate the rules of the request: %w", err)
	}
	out := &broker.Error{Kind: broker.ErrInvalid, Detail: "the request is invalid"}
	for _, v := range found.Violations {
		field, rule := protovalidate.FieldPathString(v.Proto.GetField()), v.Proto.GetRuleId()
		text := v.Proto.GetMessage()
		if text == "" {
			text = "breaks the rule " + rule
		}
		reason := reasonOfField(field, rule, v.Proto.GetForKey())
		if out.Reason == "" {
			out.Reason = reason
		} else if out.Reason != reason {
			out.Reason = broker.ReasonFieldInvalid
		}
		if len(out.Violations) < maxViolations {
			out.Violations = append(out.Violations, broker.Violation{Field: clip(field, maxField), Description: clip(text, maxDescription)})
		}
	}
	return out
}

// fieldReasons are the fields whose faults have a reason of their own. Indexes
// and map keys are left out of the names.
var fieldReasons = map[string]broker.Reason{
	"name":                     broker.ReasonNameInvalid,
	"domain.name":              broker.ReasonNameInvalid,
	"parent":                   broker.ReasonNameInvalid,
	"page_token":               broker.ReasonPageTokenInvalid,
	"filter":                   broker.ReasonFilterInvalid,
	"kms_key":                  broker.ReasonKeyARNInvalid,
	"items.source_kms_key":     broker.ReasonKeyARNInvalid,
	"existing_policy_document": broker.ReasonPolicyDocumentInvalid,
	"header.parent":            broker.ReasonNameInvalid,
	"header.grant":             broker.ReasonNameInvalid,
	"header.grantee_principal": broker.ReasonGranteeNotAllowed,
	"header.resume_token":      broker.ReasonResumeTokenInvalid,
	"grant.grantee_principal":  broker.ReasonGranteeNotAllowed,
	"grant.operations":         broker.ReasonOperationNotAllowed,
	"grant.constraints":        broker.ReasonConstraintInvalid,
}

// entryReasons are the lists whose entries' faults have a reason of their own.
// That of the list itself, its length or an entry that stands twice, has none.
var entryReasons = map[string]broker.Reason{
	"names":                     broker.ReasonNameInvalid,
	"domain.import_source_keys": broker.ReasonKeyARNInvalid,
}

var (
	subscript = regexp.MustCompile(`\[("([^"\\]|\\.)*"|[^"\]]*)\]`)
	contexts  = regexp.MustCompile(`(^|[._])context$|\.encryption_context_(subset|equals)$`)
)

// reasonOfField gives the reason for a broken rule of a field.
func reasonOfField(field, rule string, forKey bool) broker.Reason {
	plain := subscript.ReplaceAllString(field, "")
	if contexts.MatchString(plain) {
		switch {
		case rule == "map.max_pairs" || strings.HasSuffix(rule, "max_len"):
			return broker.ReasonContextTooLarge
		case forKey:
			return broker.ReasonContextKeyInvalid
		case strings.HasPrefix(rule, "string."):
			return broker.ReasonContextValueInvalid
		}
		return broker.ReasonFieldInvalid
	}
	if reason, ok := fieldReasons[plain]; ok {
		return reason
	}
	if reason, ok := entryReasons[plain]; ok && !strings.HasPrefix(rule, "repeated.") {
		return reason
	}
	return broker.ReasonFieldInvalid
}

// refuse is one bad field.
func refuse(reason broker.Reason, field, text string) error {
	return &broker.Error{Kind: broker.ErrInvalid, Reason: reason, Detail: "the request is invalid",
		Violations: []broker.Violation{{Field: field, Description: text}}}
}
