package brokertest

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/keybroker/keybroker/internal/broker"
)

// kmsCodes are KMS's error codes and what they mean (AWS KMS API Reference, the
// Errors of each operation, and Common Error Types).
var kmsCodes = map[string]broker.KMSClass{
	"ThrottlingException":            broker.KMSThrottled,
	"RequestLimitExceeded":           broker.KMSThrottled,
	"KMSInternalException":           broker.KMSUnavailable,
	"KeyUnavailableException":        broker.KMSUnavailable,
	"DependencyTimeoutException":     broker.KMSUnavailable,
	"ServiceUnavailableException":    broker.KMSUnavailable,
	"InternalFailure":                broker.KMSUnavailable,
	"ExpiredTokenException":          broker.KMSUnavailable,
	"UnrecognizedClientException":    broker.KMSUnavailable,
	"InvalidSignatureException":      broker.KMSUnavailable,
	"AccessDeniedException":          broker.KMSDenied,
	"DisabledException":              broker.KMSDisabled,
	"KMSInvalidStateException":       broker.KMSInvalidState,
	"NotFoundException":              broker.KMSNotFound,
	"IncorrectKeyException":          broker.KMSIncorrectKey,
	"InvalidCiphertextException":     broker.KMSInvalidCiphertext,
	"LimitExceededException":         broker.KMSLimitExceeded,
	"InvalidGrantTokenException":     broker.KMSInvalidToken,
	"ValidationException":            broker.KMSInvalidRequest,
	"InvalidArnException":            broker.KMSInvalidRequest,
	"InvalidKeyUsageException":       broker.KMSInvalidRequest,
	"DryRunOperationException":       broker.KMSInvalidRequest, // to what was no dry run
	"ValidationError":                broker.KMSInvalidRequest,
	"UnknownOperationException":      broker.KMSInvalidRequest,
	"MalformedHttpRequestException":  broker.KMSInvalidRequest,
	"RequestEntityTooLargeException": broker.KMSInvalidRequest,
	"RequestAbortedException":        broker.KMSUnavailable,
	// It may stand for work that was done, and says nothing of key, row or request.
	"SomethingThatKMSHasNeverSaidYet": broker.KMSUnavailable,
	"InvalidIdentityToken":            broker.KMSUnavailable, // STS's
}

func classifiesErrorCodes(t *kmsTest) {
	key := t.readyKey()
	for operation, call := range t.eachCall(key) {
		for code, class := range kmsCodes {
			switch {
			case operation == "RetireGrant" && class == broker.KMSNotFound:
				continue // a success
			case operation == "ReEncrypt" && code == "DryRunOperationException":
				continue // eachCall's is a dry run: a success
			}
			t.Faults.Plan(operation, slices.Repeat([]Fault{{Code: code, Message: string(key) + " is at fault."}}, t.Attempts)...)
			failure := t.failure(call(t.Context()), operation, class)
			t.Faults.Clear()
			if failure.Code != code || failure.RequestID != FaultRequestID {
				t.Errorf("%s, %s: got code %q, request %q", operation, code, failure.Code, failure.RequestID)
			}
			if failure.Key != key {
				t.Errorf("%s, %s: the error names key %q, its message %q", operation, code, failure.Key, key)
			}
		}
	}
}

// transient are failures that may pass.
var transient = map[broker.KMSClass][]Fault{
	broker.KMSThrottled:   {{Code: "ThrottlingException", Message: "Rate exceeded"}},
	broker.KMSUnavailable: {{Code: "KMSInternalException"}, {Status: 503}, {LoseRequest: true}, {LoseAnswer: true}},
}

func repeatsTransientFailures(t *kmsTest) {
	key := t.readyKey()
	for operation, call := range t.eachCall(key) {
		for class, faults := range transient {
			for _, fault := range faults {
				before := t.Faults.Attempts(operation)
				t.Faults.Plan(operation, slices.Repeat([]Fault{fault}, t.Attempts)...)
				failure := t.failure(call(t.Context()), operation, class)
				if tries := t.Faults.Attempts(operation) - before; tries != t.Attempts {
					t.Errorf("%s, %+v: tried %d times, want %d", operation, fault, tries, t.Attempts)
				}
				if failure.Code != fault.Code {
					t.Errorf("%s, %+v: got code %q", operation, fault, failure.Code)
				}
				t.Faults.Clear()
				t.Faults.Plan(operation, slices.Repeat([]Fault{fault}, t.Attempts-1)...)
				if err := call(t.Context()); err != nil {
					t.Errorf("%s, %+v: the last attempt: %v: %v", operation, fault, err, errors.Unwrap(err))
				}
				t.Faults.Clear()
			}
		}
		before := t.Faults.Attempts(operation)
		t.Faults.Plan(operation, Fault{Code: "LimitExceededException"})
		t.want(call(t.Context()), operation, broker.KMSLimitExceeded)
		if tries := t.Faults.Attempts(operation) - before; tries != 1 {
			t.Errorf("%s: a permanent refusal was asked for %d times", operation, tries)
		}
	}
}

func survivesLostAnswers(t *kmsTest) {
	key := t.newKey()
	g := t.newGrant(key, "lost/1")
	t.Faults.Plan("CreateGrant", slices.Repeat([]Fault{{LoseAnswer: true}}, t.Attempts)...)
	_, err := t.Registrar.CreateGrant(t.Context(), g)
	t.want(err, "CreateGrant", broker.KMSUnavailable)
	created := t.create(g)
	t.ShowGrants(t.T)
	grants := t.own(t.Registrar.ListGrants(t.Context(), key, ""))
	if len(grants) != 1 || grants[0].ID != created.ID {
		t.Errorf("lost answers left %d grants", len(grants))
	}
	t.Faults.Plan("RetireGrant", slices.Repeat([]Fault{{LoseAnswer: true}}, t.Attempts)...)
	_, err = t.Registrar.RetireGrant(t.Context(), key, created.ID)
	if t.Attempts == 1 {
		t.want(err, "RetireGrant", broker.KMSUnavailable)
	}
	t.Faults.Clear()
	_, err = t.Registrar.RetireGrant(t.Context(), key, created.ID)
	t.must(err)
}

// comparesKeys lets KMS answer with a key that was not asked for.
func comparesKeys(t *kmsTest) {
	from, to := t.readyKey(), t.readyKey()
	other := Fault{Rewrite: func(body string) string { return strings.ReplaceAll(body, string(to), unknownKey(to)) }}
	otherSource := Fault{Rewrite: func(body string) string { return strings.ReplaceAll(body, string(from), unknownKey(from)) }}
	pairs := t.pairs("one")
	blob := t.generate(from, pairs)
	move := broker.ReEncrypt{
		Ciphertext: blob, SourceKey: from, SourceContext: pairs, DestinationKey: to, DestinationContext: pairs,
	}
	for _, fault := range []Fault{other, otherSource} {
		t.Faults.Plan("ReEncrypt", fault)
		got, err := t.Worker.ReEncrypt(t.Context(), move)
		t.want(err, "ReEncrypt", broker.KMSIncorrectKey)
		if got.Ciphertext != nil {
			t.Error("a blob of another key was handed out")
		}
	}
	t.Faults.Plan("GenerateDataKeyWithoutPlaintext", other)
	_, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
		Key: to, KeySpec: broker.DefaultKeySpec, Context: pairs,
	})
	t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSIncorrectKey)
	t.Faults.Plan("DescribeKey", other)
	_, err = t.Registrar.DescribeKey(t.Context(), string(to))
	t.want(err, "DescribeKey", broker.KMSIncorrectKey)
}

func refusesUnreadableAnswers(t *kmsTest) {
	key := t.readyKey()
	calls := t.eachCall(key)
	// Of a dry run only the refusal counts, and RetireGrant's answer is empty.
	delete(calls, "ReEncrypt")
	delete(calls, "RetireGrant")
	for operation, call := range calls {
		for name, rewrite := range map[string]func(string) string{
			"cut":   func(body string) string { return body[:len(body)/2] },
			"empty": func(string) string { return "{}" },
		} {
			if strings.HasPrefix(operation, "List") && name == "empty" {
				continue // no grants: a good answer
			}
			t.Faults.Plan(operation, slices.Repeat([]Fault{{Rewrite: rewrite}}, t.Attempts)...)
			if failure := t.failure(call(t.Context()), operation, broker.KMSUnavailable); failure.Err == nil {
				t.Errorf("%s answer to %s was taken", name, operation)
			}
			t.Faults.Clear()
		}
	}
	const endless = `{"Grants":[],"Truncated":true,"NextMarker":"m"}`
	for _, pages := range [][]Fault{
		{{Body: `{"Grants":[],"Truncated":true}`}},
		{{Body: endless}, {Body: `{"Grants":[],"Truncated":true}`}},
		{{Body: endless}, {Body: endless}},
	} {
		t.Faults.Plan("ListGrants", pages...)
		_, err := t.Registrar.ListGrants(t.Context(), key, "")
		t.want(err, "ListGrants", broker.KMSUnavailable)
		t.Faults.Plan("ListRetirableGrants", pages...)
		_, err = t.Registrar.ListRetirableGrants(t.Context(), key, t.RegistrarRole)
		t.want(err, "ListRetirableGrants", broker.KMSUnavailable)
	}
	t.Faults.Plan("ReEncrypt", Fault{Body: `{"KeyId":"` + string(key) + `","SourceKeyId":"` + string(key) + `"}`})
	t.want(t.reEncrypt(broker.ReEncrypt{
		Ciphertext: broker.Secret("blob"), SourceKey: key, SourceContext: t.pairs("one"), DestinationKey: key, DestinationContext: t.pairs("one"),
	}), "ReEncrypt", broker.KMSUnavailable)
	// A KMS that carries out dry runs must not be taken for one that allows them.
	done := Fault{Body: `{"GrantId":"1","GrantToken":"2","CiphertextBlob":"AA==","KeyId":"` + string(key) + `"}`}
	for operation, call := range map[string]func() error{
		"ReEncrypt": func() error { return t.reEncryptDry(t.Context(), key, key, t.pairs("one")) },
		"CreateGrant": func() error {
			g := t.newGrant(key, "dry/1")
			g.DryRun = true
			_, err := t.Registrar.CreateGrant(t.Context(), g)
			return err
		},
	} {
		t.Faults.Plan(operation, done)
		t.want(call(), operation, broker.KMSInvalidRequest)
	}
}

func endsWithItsContext(t *kmsTest) {
	key := t.readyKey()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for operation, call := range t.eachCall(key) {
		err := call(cancelled)
		t.want(err, operation, broker.KMSUnavailable)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want one that wraps context.Canceled", operation, err)
		}
	}
}
