package localkms

import (
	"maps"
	"slices"
	"strings"
)

// Operations returns the names of the operations that a KMS serves, sorted.
func Operations() []string { return slices.Sorted(maps.Keys(newOperations())) }

// newOperations is the dispatch table: every operation this package serves.
func newOperations() map[string]operation {
	return map[string]operation{
		"CreateKey":   serve((*KMS).createKey),
		"DescribeKey": serve((*KMS).describeKey),
		"ListKeys":    serve((*KMS).listKeys),
		"EnableKey":   serve((*KMS).enableKey),
		"DisableKey":  serve((*KMS).disableKey),

		"UpdateKeyDescription": serve((*KMS).updateKeyDescription),

		"GetKeyPolicy":    serve((*KMS).getKeyPolicy),
		"PutKeyPolicy":    serve((*KMS).putKeyPolicy),
		"ListKeyPolicies": serve((*KMS).listKeyPolicies),

		"TagResource":      serve((*KMS).tagResource),
		"UntagResource":    serve((*KMS).untagResource),
		"ListResourceTags": serve((*KMS).listResourceTags),

		"ScheduleKeyDeletion": serve((*KMS).scheduleKeyDeletion),
		"CancelKeyDeletion":   serve((*KMS).cancelKeyDeletion),

		"RotateKeyOnDemand":    serve((*KMS).rotateKeyOnDemand),
		"GetKeyLastUsage":      serve((*KMS).getKeyLastUsage),
		"EnableKeyRotation":    serve((*KMS).enableKeyRotation),
		"DisableKeyRotation":   serve((*KMS).disableKeyRotation),
		"GetKeyRotationStatus": serve((*KMS).getKeyRotationStatus),
		"ListKeyRotations":     serve((*KMS).listKeyRotations),

		"CreateAlias": serve((*KMS).createAlias),
		"UpdateAlias": serve((*KMS).updateAlias),
		"DeleteAlias": serve((*KMS).deleteAlias),
		"ListAliases": serve((*KMS).listAliases),

		"Encrypt":                         serve((*KMS).encrypt),
		"Decrypt":                         serve((*KMS).decrypt),
		"GenerateDataKey":                 serve((*KMS).generateDataKey),
		"GenerateDataKeyWithoutPlaintext": serve((*KMS).generateDataKeyWithoutPlaintext),
		"ReEncrypt":                       serve((*KMS).reEncrypt),
		"GenerateRandom":                  serve((*KMS).generateRandom),

		"GenerateDataKeyPair":                 serve((*KMS).generateDataKeyPair),
		"GenerateDataKeyPairWithoutPlaintext": serve((*KMS).generateDataKeyPairWithoutPlaintext),

		"GenerateMac": serve((*KMS).generateMac),
		"VerifyMac":   serve((*KMS).verifyMac),

		"CreateGrant": serve((*KMS).createGrant),
		"ListGrants":  serve((*KMS).listGrants),
		"RetireGrant": serve((*KMS).retireGrant),
		"RevokeGrant": serve((*KMS).revokeGrant),

		"ListRetirableGrants": serve((*KMS).listRetirableGrants),
	}
}

// unsupported names the operations of AWS KMS (API Reference, Actions) that this
// package does not serve: they are answered otherwise than a misspelt one.
const unsupported = ` ConnectCustomKeyStore CreateCustomKeyStore Decapsulate DeleteCustomKeyStore
 DeleteImportedKeyMaterial DeriveSharedSecret DescribeCustomKeyStores DisconnectCustomKeyStore
 Encapsulate GetParametersForImport GetPublicKey ImportKeyMaterial ReplicateKey Sign
 UpdateCustomKeyStore UpdatePrimaryRegion Verify `

func isUnsupported(name string) bool {
	for known := range strings.FieldsSeq(unsupported) {
		if known == name {
			return true
		}
	}
	return false
}
