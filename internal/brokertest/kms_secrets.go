package brokertest

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// keepsSecrets lets KMS quote a whole request in its message, and looks for
// tokens, blobs and context values in everything that the ports hand out.
func keepsSecrets(t *kmsTest) {
	key := t.newKey()
	created := t.grant(key)
	canaries := map[string][]byte{
		"token":         created.Token,
		"context value": []byte("canary-of-a-context-value"),
		"context key":   []byte("canary-of-a-context-key"),
	}
	pairs := t.pairs("canary-of-a-context-value")
	pairs["canary-of-a-context-key"] = "1"
	tokens := []broker.Secret{created.Token}
	wrapped, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
		Key: key, KeySpec: broker.DefaultKeySpec, Context: pairs, Tokens: tokens,
	})
	t.must(err)
	canaries["blob"] = wrapped.Ciphertext
	move := broker.ReEncrypt{
		Ciphertext: wrapped.Ciphertext, SourceKey: key, SourceContext: pairs, DestinationKey: key, DestinationContext: pairs, Tokens: tokens,
	}
	moved, err := t.Worker.ReEncrypt(t.Context(), move)
	t.must(err)
	canaries["new blob"] = moved.Ciphertext
	for _, v := range []any{created, &created, wrapped, &wrapped, moved, &moved} {
		t.findCanaries(v, canaries)
	}

	quote := fmt.Sprintf("%s %s %v %s", created.Token[:], base64.StdEncoding.EncodeToString(wrapped.Ciphertext), map[string]string(pairs), []byte(created.Token))
	messages := []string{
		quote,
		"1 validation error detected: Value '" + quote + "' at 'grantTokens' failed to satisfy constraint: Member must be shorter",
		"2 validation errors detected: Value '" + quote + "' at 'a' failed; Value '" + quote + "' at 'b' failed",
	}
	for _, code := range []string{"ValidationException", "InvalidGrantTokenException", "SerializationException", "InvalidCiphertextException", "Unheard"} {
		for _, message := range messages {
			quoting := slices.Repeat([]Fault{{Code: code, Message: message}}, t.Attempts)
			t.Faults.Plan("ReEncrypt", quoting...)
			t.Faults.Plan("GenerateDataKeyWithoutPlaintext", quoting...)
			t.findCanaries(t.reEncrypt(move), canaries)
			_, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
				Key: key, KeySpec: broker.DefaultKeySpec, Context: pairs, Tokens: tokens,
			})
			t.findCanaries(err, canaries)
			t.Faults.Clear()
		}
	}
	broken := Fault{Rewrite: func(string) string { return quote }}
	t.Faults.Plan("ReEncrypt", slices.Repeat([]Fault{broken}, t.Attempts)...)
	t.findCanaries(t.reEncrypt(move), canaries)
	t.Faults.Plan("ReEncrypt", slices.Repeat([]Fault{{LoseAnswer: true}}, t.Attempts)...)
	t.findCanaries(t.reEncrypt(move), canaries)
}

// findCanaries prints a value, and all that it wraps, in every way that a
// logger might.
func (t *kmsTest) findCanaries(v any, canaries map[string][]byte) {
	t.Helper()
	if err, isError := v.(error); v == nil || (isError && err == nil) {
		t.Error("the call should have failed")
		return
	}
	texts := []string{fmt.Sprint(v), fmt.Sprintf("%+v", v), fmt.Sprintf("%#v", v), fmt.Sprintf("%q", v), fmt.Sprintf("%x", v)}
	if err, isError := v.(error); isError {
		var failure *broker.KMSError
		if errors.As(err, &failure) {
			texts = append(texts, fmt.Sprintf("%+v", *failure), fmt.Sprintf("%#v", failure.Err))
		}
		for ; err != nil; err = errors.Unwrap(err) {
			texts = append(texts, err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err))
		}
	}
	all := strings.Join(texts, "\n")
	for what, canary := range canaries {
		decimals := strings.Trim(fmt.Sprintf("%d", canary), "[]")
		for _, form := range []string{string(canary), base64.StdEncoding.EncodeToString(canary), hex.EncodeToString(canary), decimals} {
			if strings.Contains(all, form) {
				t.Errorf("the %s shows in %T", what, v)
			}
		}
	}
}
