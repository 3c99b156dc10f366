package main

import (
	"context"
	"fmt"
)

// A load is calls of one operation. It is run in two halves, with one caller and
// with eight, that share nothing which a call uses up.
type load struct {
	operation string
	always    any                   // the request, where it may be the same each time
	each      func(half, i int) any // else the i-th one of a half
	most      int                   // how many calls a half has things for; 0: any number
	after     string                // the operation that makes those things, if it is a load too
}

// stock is what the calls work on.
type stock struct {
	n      int         // things for one half
	keys   [2][]string // plain keys, each for as many calls as it says
	key    string      // for calls that leave it as it is, or differently described
	other  string      // where an alias goes
	mac    string
	blob   []byte
	tag    []byte
	grants [2][2][]string // of key: by the operation that ends them, by half
}

// newStock makes the keys and grants of a run: n of each for a half.
func newStock(ctx context.Context, c *rawClient, n int) (*stock, error) {
	s := &stock{n: n}
	for half := range s.keys {
		for range n {
			// A tag to take away, and nothing else that differs from a plain key.
			key, err := newKey(ctx, c, map[string]any{"Tags": []any{map[string]any{"TagKey": "a", "TagValue": "1"}}})
			if err != nil {
				return nil, err
			}
			s.keys[half] = append(s.keys[half], key)
		}
	}
	var err error
	if s.key, err = newKey(ctx, c, map[string]any{}); err != nil {
		return nil, err
	}
	if s.other, err = newKey(ctx, c, map[string]any{}); err != nil {
		return nil, err
	}
	if s.mac, err = newKey(ctx, c, map[string]any{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}); err != nil {
		return nil, err
	}
	for end := range s.grants {
		for half := range s.grants[end] {
			for range n {
				var made struct {
					GrantID string `json:"GrantId"`
				}
				if err := c.call(ctx, "CreateGrant", s.grant(s.other), &made); err != nil {
					return nil, err
				}
				s.grants[end][half] = append(s.grants[end][half], made.GrantID)
			}
		}
	}
	return s, s.use(ctx, c)
}

// use makes what is to be decrypted, verified and moved.
func (s *stock) use(ctx context.Context, c *rawClient) error {
	var sealed struct{ CiphertextBlob []byte }
	if err := c.call(ctx, "Encrypt", s.encrypt(), &sealed); err != nil {
		return err
	}
	var made struct{ Mac []byte }
	if err := c.call(ctx, "GenerateMac", s.message(nil), &made); err != nil {
		return err
	}
	s.blob, s.tag = sealed.CiphertextBlob, made.Mac
	return c.call(ctx, "CreateAlias", map[string]any{"AliasName": "alias/wanders", "TargetKeyId": s.key}, nil)
}

func newKey(ctx context.Context, c *rawClient, request any) (string, error) {
	var made struct{ KeyMetadata struct{ Arn string } }
	err := c.call(ctx, "CreateKey", request, &made)
	return made.KeyMetadata.Arn, err
}

func pairs() map[string]string {
	return map[string]string{"keybroker:domain": "01JQ0000000000000000000000", "object": "recordings/2026/000001"}
}

func (s *stock) grant(key string) any {
	return map[string]any{"KeyId": key, "GranteePrincipal": service, "RetiringPrincipal": customer, "Operations": []string{"Decrypt"},
		"Constraints": map[string]any{"EncryptionContextSubset": pairs()}}
}

func (s *stock) encrypt() any {
	return map[string]any{"KeyId": s.key, "Plaintext": make([]byte, 32), "EncryptionContext": pairs()}
}

func (s *stock) dataKey() any {
	return map[string]any{"KeyId": s.key, "KeySpec": "AES_256", "EncryptionContext": pairs()}
}

func (s *stock) pair() any {
	return map[string]any{"KeyId": s.key, "KeyPairSpec": "ECC_NIST_P256", "EncryptionContext": pairs()}
}

func (s *stock) message(tag []byte) any {
	m := map[string]any{"KeyId": s.mac, "MacAlgorithm": "HMAC_SHA_256", "Message": make([]byte, 32)}
	if tag != nil {
		m["Mac"] = tag
	}
	return m
}

// onKey is a call that only names the stock's key.
func (s *stock) onKey(operation string) load {
	return load{operation: operation, always: map[string]any{"KeyId": s.key}}
}

// onKeys is a call that uses a key of the stock up, with more to say about it.
func (s *stock) onKeys(operation string, more map[string]any) load {
	return load{operation: operation, most: s.n, each: func(half, i int) any {
		request := map[string]any{"KeyId": s.keys[half][i]}
		for name, value := range more {
			request[name] = value
		}
		return request
	}}
}

// alias is the name of an alias of the stock: as many to a key as a key may have.
const aliasesPerKey = 50

func alias(half, i int) string { return fmt.Sprintf("alias/%d/%d", half, i) }

// loads are the operations in an order in which each finds what it needs.
func (s *stock) loads() []load {
	cancel := s.onKeys("CancelKeyDeletion", nil)
	cancel.after = "ScheduleKeyDeletion"
	return []load{
		{operation: "GenerateDataKey", always: s.dataKey()},
		{operation: "GenerateDataKeyWithoutPlaintext", always: s.dataKey()},
		{operation: "GenerateDataKeyPair", always: s.pair()},
		{operation: "GenerateDataKeyPairWithoutPlaintext", always: s.pair()},
		{operation: "Encrypt", always: s.encrypt()},
		{operation: "Decrypt", always: map[string]any{"KeyId": s.key, "CiphertextBlob": s.blob, "EncryptionContext": pairs()}},
		{operation: "ReEncrypt", always: map[string]any{"CiphertextBlob": s.blob, "SourceKeyId": s.key, "SourceEncryptionContext": pairs(),
			"DestinationKeyId": s.key, "DestinationEncryptionContext": pairs()}},
		{operation: "GenerateMac", always: s.message(nil)},
		{operation: "VerifyMac", always: s.message(s.tag)},
		{operation: "GenerateRandom", always: map[string]any{"NumberOfBytes": 32}},

		s.onKey("DescribeKey"), s.onKey("GetKeyPolicy"), s.onKey("ListKeyPolicies"), s.onKey("GetKeyLastUsage"),
		s.onKey("GetKeyRotationStatus"), s.onKey("ListKeyRotations"), s.onKey("ListResourceTags"),
		{operation: "ListKeys", always: map[string]any{}},
		{operation: "ListGrants", always: map[string]any{"KeyId": s.other}},
		{operation: "ListRetirableGrants", always: map[string]any{"RetiringPrincipal": customer}},

		{operation: "UpdateKeyDescription", each: func(_, i int) any { return map[string]any{"KeyId": s.key, "Description": fmt.Sprint(i)} }},
		{operation: "PutKeyPolicy", always: map[string]any{"KeyId": s.key, "Policy": ownerPolicy}},
		{operation: "TagResource", each: func(_, i int) any {
			return map[string]any{"KeyId": s.key, "Tags": []any{map[string]any{"TagKey": "a", "TagValue": fmt.Sprint(i)}}}
		}},
		s.onKeys("UntagResource", map[string]any{"TagKeys": []string{"a"}}),
		s.onKeys("EnableKeyRotation", nil),
		s.onKeys("DisableKeyRotation", nil),
		s.onKeys("RotateKeyOnDemand", nil),

		{operation: "CreateAlias", most: s.n, each: func(half, i int) any {
			return map[string]any{"AliasName": alias(half, i), "TargetKeyId": s.keys[half][i/aliasesPerKey]}
		}},
		{operation: "UpdateAlias", each: func(_, i int) any {
			return map[string]any{"AliasName": "alias/wanders", "TargetKeyId": []string{s.key, s.other}[i%2]}
		}},
		{operation: "ListAliases", always: map[string]any{}},
		{operation: "DeleteAlias", after: "CreateAlias", each: func(half, i int) any { return map[string]any{"AliasName": alias(half, i)} }},

		{operation: "CreateGrant", always: s.grant(s.key)},
		{operation: "RetireGrant", most: s.n, each: func(half, i int) any { return map[string]any{"KeyId": s.other, "GrantId": s.grants[0][half][i]} }},
		{operation: "RevokeGrant", most: s.n, each: func(half, i int) any { return map[string]any{"KeyId": s.other, "GrantId": s.grants[1][half][i]} }},

		s.onKeys("DisableKey", nil),
		s.onKeys("EnableKey", nil),
		s.onKeys("ScheduleKeyDeletion", nil),
		cancel,
		{operation: "CreateKey", always: map[string]any{}},
	}
}

// ownerPolicy is the least that a key policy says.
const ownerPolicy = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + customer + `"},"Action":"kms:*","Resource":"*"}}`
