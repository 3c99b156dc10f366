package awskms

import (
	"errors"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// guard is the last check of invariant I4 before a request leaves. It knows no
// domain, so it asks for the deployment's reserved key, with a value that a domain
// of the key's Region might have.
type guard struct {
	key string
	// value is the template of the value, cut into its placeholders and the texts
	// between them.
	value []string
}

// The placeholders of a template, and what a domain's uid looks like
// (broker.Config.NewUID).
const (
	uidPlaceholder    = "{uid}"
	regionPlaceholder = "{region}"
	uidLength         = 26
)

func newGuard(key, template string) guard {
	g := guard{key: key}
	for template != "" {
		at, placeholder := len(template), ""
		for _, p := range []string{uidPlaceholder, regionPlaceholder} {
			if i := strings.Index(template, p); i >= 0 && i < at {
				at, placeholder = i, p
			}
		}
		if at > 0 {
			g.value = append(g.value, template[:at])
		}
		if placeholder != "" {
			g.value = append(g.value, placeholder)
		}
		template = template[at+len(placeholder):]
	}
	return g
}

// holds reports whether the pairs have the reserved one, of whichever domain.
func (g guard) holds(pairs broker.Context, region string) bool {
	rest, ok := pairs[g.key]
	for _, piece := range g.value {
		if !ok {
			return false
		}
		switch piece {
		case uidPlaceholder:
			if ok = len(rest) >= uidLength && isUID(rest[:uidLength]); ok {
				rest = rest[uidLength:]
			}
		case regionPlaceholder:
			rest, ok = strings.CutPrefix(rest, region)
		default:
			rest, ok = strings.CutPrefix(rest, piece)
		}
	}
	return ok && rest == ""
}

func isUID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

var errNoReservedPair = errors.New("the encryption context or constraint has no reserved pair, or one that is no domain's")

// refuseUnreserved stops a call under a key whose pairs lack the reserved one.
func (k *KMS) refuseUnreserved(operation string, key broker.KeyARN, pairs ...broker.Context) error {
	region := parseARN(string(key)).region
	for _, p := range pairs {
		if k.guard.holds(p, region) {
			return nil
		}
	}
	if k.cfg.PanicOnGuard {
		panic("awskms: " + operation + ": " + errNoReservedPair.Error())
	}
	return k.refuse(operation, codeNoReservedPair, errNoReservedPair)
}

// refuse is the answer to a call that is not sent. It is counted like an answer
// of KMS.
func (k *KMS) refuse(operation, code string, err error) *broker.KMSError {
	if k.cfg.Observe != nil {
		k.cfg.Observe(operation, broker.KMSInvalidRequest, 0)
	}
	return &broker.KMSError{Class: broker.KMSInvalidRequest, Code: code, Operation: operation, Err: err}
}
