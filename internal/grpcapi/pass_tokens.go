package grpcapi

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// passTokens make the resume tokens of passes and the proofs of receipts: what
// the broker would have to keep of a pass is kept by the client, sealed.
type passTokens struct {
	tokens *sealer
	proofs []byte // key of the proofs' HMAC
}

func newPassTokens(tokens *sealer, key []byte) (*passTokens, error) {
	proofs, err := hkdf.Key(sha256.New, key, nil, "keybroker/receipt-proof/v1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("key of receipt proofs: %w", err)
	}
	return &passTokens{tokens: tokens, proofs: proofs}, nil
}

// A passToken is a pass less its owner, whom the header names again.
type passToken struct {
	ID     string           `json:"p"`
	Domain broker.DomainUID `json:"d"`
	Epoch  broker.Epoch     `json:"e"`
	Begin  int64            `json:"b"` // Unix microseconds
	Items  int64            `json:"n"`
}

// bound is what a resume token is good for: the method, the domain and the owner.
// Not the caller: another process of the service may go on.
func bound(h *keybrokerv1.ReencryptStreamRequest_Header) []byte {
	return joined(keybrokerv1.DataKeyService_ReencryptStream_FullMethodName, h.GetParent(), h.GetGrant(), h.GetGranteePrincipal())
}

func (t *passTokens) seal(h *keybrokerv1.ReencryptStreamRequest_Header, p rotation.Pass) (string, error) {
	plain, err := json.Marshal(passToken{ID: p.ID, Domain: p.Domain, Epoch: p.Epoch, Begin: p.BeginTime.UnixMicro(), Items: p.Items})
	if err != nil {
		return "", fmt.Errorf("encode a resume token: %w", err)
	}
	return t.tokens.seal(plain, bound(h)), nil
}

// open gives the pass of a header's resume token; nil if it has none. A token is
// good as long as its domain's key stays: the engine compares.
func (t *passTokens) open(h *keybrokerv1.ReencryptStreamRequest_Header, owner rotation.PassOwner) (*rotation.Pass, error) {
	if h.GetResumeToken() == "" {
		return nil, nil
	}
	plain, err := t.tokens.open(h.GetResumeToken(), bound(h))
	var p passToken
	if err == nil {
		err = json.Unmarshal(plain, &p)
	}
	if err != nil {
		return nil, refuse(broker.ReasonResumeTokenInvalid, "header.resume_token",
			"was not made for this domain and grant: begin a new pass without it")
	}
	return &rotation.Pass{ID: p.ID, Domain: p.Domain, Owner: owner, Epoch: p.Epoch, BeginTime: time.UnixMicro(p.Begin).UTC(), Items: p.Items}, nil
}

// proof is the broker's own word that a blob of a domain, made with a context, is
// under a key.
func (t *passTokens) proof(domain, kmsKey string, blob []byte, context map[string]string) []byte {
	parts := []string{domain, kmsKey, string(blob)}
	for _, key := range slices.Sorted(maps.Keys(context)) {
		parts = append(parts, key, context[key])
	}
	h := hmac.New(sha256.New, t.proofs)
	h.Write(joined(parts...))
	return h.Sum(nil)
}

// proven reports whether an item carries that word for the key that it names.
func (t *passTokens) proven(domain string, item *keybrokerv1.ReencryptStreamRequest_Item) bool {
	return len(item.GetProof()) > 0 && item.GetKmsKey() != "" &&
		hmac.Equal(item.GetProof(), t.proof(domain, item.GetKmsKey(), item.GetCiphertextBlob(), item.GetContext()))
}
