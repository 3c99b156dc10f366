package brokertest

import (
	"bytes"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
)

func generatesDataKeys(t *kmsTest) {
	key := t.readyKey()
	material, err := t.Registrar.DescribeKey(t.Context(), string(key))
	t.must(err)
	for spec, size := range map[string]int{"AES_256": 32, "AES_128": 16} {
		got, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
			Key: key, KeySpec: spec, Context: t.pairs(spec),
		})
		t.must(err)
		if n := len(t.Customer.Decrypt(t.T, key, got.Ciphertext, t.pairs(spec))); n != size {
			t.Errorf("%s: %d bytes, want %d", spec, n, size)
		}
		want := broker.WrappedKey{
			Ciphertext: got.Ciphertext, Key: key, KeyMaterialID: material.CurrentKeyMaterialID, RequestID: got.RequestID,
		}
		if diff := cmp.Diff(want, got); diff != "" || got.RequestID == "" {
			t.Errorf("%s: request %q (-want +got)\n%s", spec, got.RequestID, diff)
		}
	}
	generate := broker.GenerateDataKey{Key: key, KeySpec: broker.DefaultKeySpec, Context: t.pairs("dry"), DryRun: true}
	got, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), generate)
	t.must(err)
	if got.Ciphertext != nil {
		t.Error("a dry run gave a data key")
	}
	generate.Context = t.stranger()
	_, err = t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), generate)
	t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSDenied)
	generate.DryRun = false
	_, err = t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), generate)
	t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSDenied)
	generate.Context, generate.KeySpec = t.pairs("bad"), "AES_512"
	_, err = t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), generate)
	t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSInvalidRequest)
}

func reEncrypts(t *kmsTest) {
	from, to := t.readyKey(), t.readyKey()
	blob := t.generate(from, t.pairs("one"))
	plaintext := t.Customer.Decrypt(t.T, from, blob, t.pairs("one"))
	for _, c := range []struct {
		name            string
		to              broker.KeyARN
		object, changed string
	}{
		{"to another key", to, "one", "one"},
		{"to the same key", from, "one", "one"},
		{"to another context", to, "one", "two"},
	} {
		got, err := t.Worker.ReEncrypt(t.Context(), broker.ReEncrypt{
			Ciphertext: blob, SourceKey: from, SourceContext: t.pairs(c.object),
			DestinationKey: c.to, DestinationContext: t.pairs(c.changed),
		})
		t.must(err)
		if !bytes.Equal(t.Customer.Decrypt(t.T, c.to, got.Ciphertext, t.pairs(c.changed)), plaintext) {
			t.Errorf("%s: the data key changed", c.name)
		}
		want := broker.ReEncrypted{
			Ciphertext: got.Ciphertext, RequestID: got.RequestID,
			SourceKey: from, SourceKeyMaterialID: t.material(from),
			DestinationKey: c.to, DestinationKeyMaterialID: t.material(c.to),
		}
		if diff := cmp.Diff(want, got); diff != "" || got.RequestID == "" {
			t.Errorf("%s: request %q (-want +got)\n%s", c.name, got.RequestID, diff)
		}
	}
}

func (t *kmsTest) material(key broker.KeyARN) string {
	t.Helper()
	m, err := t.Registrar.DescribeKey(t.Context(), string(key))
	t.must(err)
	return m.CurrentKeyMaterialID
}

// imports moves a blob that was made without the reserved pair: the key policy
// allows it for exactly the legacy context.
func imports(t *kmsTest) {
	legacy := broker.Context{"tenant": "t-17"}
	from, to := t.newImportKey(legacy), t.readyKey()
	plaintext := []byte("0123456789abcdef0123456789abcdef")
	move := broker.ReEncrypt{
		Ciphertext: t.Customer.Encrypt(t.T, from, plaintext, legacy), SourceKey: from, SourceContext: legacy,
		DestinationKey: to, DestinationContext: t.pairs("one"),
	}
	got, err := t.Worker.ReEncrypt(t.Context(), move)
	t.must(err)
	if !bytes.Equal(t.Customer.Decrypt(t.T, to, got.Ciphertext, t.pairs("one")), plaintext) {
		t.Error("the data key changed")
	}
	other := broker.Context{"tenant": "t-18"}
	move.Ciphertext, move.SourceContext = t.Customer.Encrypt(t.T, from, plaintext, other), other
	t.want(t.reEncrypt(move), "ReEncrypt", broker.KMSDenied)
}

// triesReEncrypt asks without a blob, as PREPARING does.
func triesReEncrypt(t *kmsTest) {
	ready, bare := t.readyKey(), t.newKey()
	t.must(t.reEncryptDry(t.Context(), ready, ready, t.pairs("one")))
	for _, c := range []struct {
		name             string
		from, to, denied broker.KeyARN
		pairs            broker.Context
	}{
		{"source without a grant", bare, ready, bare, t.pairs("one")},
		{"destination without a grant", ready, bare, bare, t.pairs("one")},
		{"another domain's pair", ready, ready, ready, t.stranger()},
	} {
		failure := t.failure(t.reEncryptDry(t.Context(), c.from, c.to, c.pairs), "ReEncrypt", broker.KMSDenied)
		if failure.Key != c.denied {
			t.Errorf("%s: the denial names key %q, want %q", c.name, failure.Key, c.denied)
		}
	}
}

func triesReEncryptOnDisabledKeys(t *kmsTest) {
	key := t.readyKey()
	t.Customer.SetEnabled(t.T, key, false)
	t.want(t.reEncryptDry(t.Context(), key, key, t.pairs("one")), "ReEncrypt", broker.KMSDisabled)
}

func refusesWrongSources(t *kmsTest) {
	right, wrong := t.readyKey(), t.readyKey()
	blob := t.generate(right, t.pairs("one"))
	move := broker.ReEncrypt{
		Ciphertext: blob, SourceKey: wrong, SourceContext: t.pairs("one"), DestinationKey: right, DestinationContext: t.pairs("one"),
	}
	t.want(t.reEncrypt(move), "ReEncrypt", broker.KMSIncorrectKey)

	move.SourceKey, move.SourceContext = right, t.pairs("two")
	t.want(t.reEncrypt(move), "ReEncrypt", broker.KMSInvalidCiphertext)

	damaged := bytes.Clone(blob)
	damaged[len(damaged)-1] ^= 1
	move.Ciphertext, move.SourceContext = damaged, t.pairs("one")
	t.want(t.reEncrypt(move), "ReEncrypt", broker.KMSInvalidCiphertext)

	move.Ciphertext, move.SourceKey = blob, broker.KeyARN(unknownKey(right))
	t.want(t.reEncrypt(move), "ReEncrypt", broker.KMSNotFound)
}

func namesDisabledKeys(t *kmsTest) {
	from, to := t.readyKey(), t.readyKey()
	move := broker.ReEncrypt{
		Ciphertext: t.generate(from, t.pairs("one")), SourceKey: from, SourceContext: t.pairs("one"),
		DestinationKey: to, DestinationContext: t.pairs("one"),
	}
	for _, key := range []broker.KeyARN{from, to} {
		t.Customer.SetEnabled(t.T, key, false)
		failure := t.failure(t.reEncrypt(move), "ReEncrypt", broker.KMSDisabled)
		if failure.Key != key || failure.Code != "DisabledException" || failure.RequestID == "" {
			t.Errorf("got key %q code %q request %q, want the disabled key %q", failure.Key, failure.Code, failure.RequestID, key)
		}
		_, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
			Key: key, KeySpec: broker.DefaultKeySpec, Context: t.pairs("one"),
		})
		t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSDisabled)
		_, err = t.Registrar.CreateGrant(t.Context(), t.newGrant(key, "disabled/1"))
		t.want(err, "CreateGrant", broker.KMSDisabled)
		t.Customer.SetEnabled(t.T, key, true)
	}
	t.must(t.reEncrypt(move))
}

func namesDeniedKeys(t *kmsTest) {
	ready, bare := t.readyKey(), t.newKey()
	blob := t.generate(ready, t.pairs("one"))
	move := broker.ReEncrypt{
		Ciphertext: blob, SourceKey: ready, SourceContext: t.pairs("one"), DestinationKey: bare, DestinationContext: t.pairs("one"),
	}
	if failure := t.failure(t.reEncrypt(move), "ReEncrypt", broker.KMSDenied); failure.Key != bare {
		t.Errorf("denied destination: the error names %q", failure.Key)
	}
	move.SourceKey, move.DestinationKey = bare, ready
	move.Ciphertext = t.Customer.Encrypt(t.T, bare, []byte("0123456789abcdef"), t.pairs("one"))
	if failure := t.failure(t.reEncrypt(move), "ReEncrypt", broker.KMSDenied); failure.Key != bare {
		t.Errorf("denied source: the error names %q", failure.Key)
	}
}

// namesKeysOfClosedPolicies: of keys whose policy does not name the broker.
func namesKeysOfClosedPolicies(t *kmsTest) {
	closed := t.Customer.NewKey(t.T, KMSPolicy{
		Owner: t.Customer.Account(), Registrar: "arn:aws:iam::" + t.Customer.Account() + ":root", Worker: t.WorkerRole, Pinned: t.reserved,
	}.Document())
	for name, call := range t.eachCall(closed) {
		switch name {
		case "RetireGrant": // of a grant that does not exist: success, whatever the policy
			continue
		case "ListRetirableGrants": // the key's policy has no say
			continue
		}
		t.want(call(t.Context()), name, broker.KMSDenied)
	}
}

// refusesUnreserved is invariant I4 at the last door.
func refusesUnreserved(t *kmsTest) {
	key := t.readyKey()
	blob := t.generate(key, t.pairs("one"))
	for _, pairs := range []broker.Context{nil, {"object": "one"}, {t.ReservedKey: ""}, {t.ReservedKey: "*"}, {t.ReservedKey: "one"},
		{t.ReservedKey: t.reserved.Value + "0"}, {t.ReservedKey: t.reserved.Value[1:]}, {strings.ToUpper(t.ReservedKey): t.reserved.Value}} {
		count := func() int {
			return t.Faults.Attempts("CreateGrant") + t.Faults.Attempts("ReEncrypt") + t.Faults.Attempts("GenerateDataKeyWithoutPlaintext")
		}
		before := count()
		_, err := t.Worker.GenerateDataKeyWithoutPlaintext(t.Context(), broker.GenerateDataKey{
			Key: key, KeySpec: broker.DefaultKeySpec, Context: pairs,
		})
		t.want(err, "GenerateDataKeyWithoutPlaintext", broker.KMSInvalidRequest)
		t.want(t.reEncrypt(broker.ReEncrypt{
			Ciphertext: blob, SourceKey: key, SourceContext: t.pairs("one"), DestinationKey: key, DestinationContext: pairs,
		}), "ReEncrypt", broker.KMSInvalidRequest)
		for _, c := range []broker.Constraint{{Subset: pairs}, {Equals: pairs}} {
			g := t.newGrant(key, "unreserved/1")
			g.Constraint = c
			_, err = t.Registrar.CreateGrant(t.Context(), g)
			t.want(err, "CreateGrant", broker.KMSInvalidRequest)
		}
		if sent := count() - before; sent != 0 {
			t.Errorf("%d requests without the reserved pair were sent", sent)
		}
	}
}
