package awskms

import (
	"errors"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// guard is the last check of invariant I4 before a request leaves: it knows no
// domain, so it asks for the deployment's reserved key with any value.
type guard struct {
	key    string
	pieces []string // of a template: the text between its placeholders; nil for a plain key
}

func newGuard(template string) guard {
	const cut = "\x00" // in no template: a legal context key has no control characters
	plain := strings.NewReplacer("{uid}", cut, "{region}", cut).Replace(template)
	if !strings.Contains(plain, cut) {
		return guard{key: template}
	}
	return guard{pieces: strings.Split(plain, cut)}
}

// holds reports whether the pairs have the reserved key, with a value.
func (g guard) holds(pairs broker.Context) bool {
	if g.pieces == nil {
		return pairs[g.key] != ""
	}
	for key, value := range pairs {
		if value != "" && g.matches(key) {
			return true
		}
	}
	return false
}

// matches reports whether some text in place of each placeholder makes the key.
func (g guard) matches(key string) bool {
	last := len(g.pieces) - 1
	rest, ok := strings.CutPrefix(key, g.pieces[0])
	if !ok {
		return false
	}
	for _, piece := range g.pieces[1:last] {
		if _, rest, ok = strings.Cut(rest, piece); !ok {
			return false
		}
	}
	return strings.HasSuffix(rest, g.pieces[last])
}

var errNoReservedPair = errors.New("the reserved pair is missing from the encryption context or constraint")

// refuseUnreserved stops a call whose pairs lack the reserved key.
func (k *KMS) refuseUnreserved(operation string, pairs ...broker.Context) error {
	for _, p := range pairs {
		if k.guard.holds(p) {
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
