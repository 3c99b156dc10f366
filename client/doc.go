// Package client encrypts a service's data under data keys that a keybroker
// keeps, and opens it again. It survives the change of the KMS key behind them
// without being told.
//
// # What happens
//
// Seal and Open take the wrapped data key from the broker, let KMS unwrap it
// with the service's own role, and encrypt with AES-256-GCM in this process.
// The broker sees neither data nor unwrapped keys; KMS sees no data.
//
//	        name                wrapped key, context
//	Client ------> keybroker ------------------------.
//	   |                                              v
//	   '--------------------------------------> KMS Decrypt, by your role
//	                                                  |
//	data -> AES-256-GCM <--------- data key ----------'
//
// An envelope stores the name and the uid of its data key, never the wrapped
// key. A key change replaces the wrapped keys in the broker's inventory, and a
// copy anywhere else would go dead with the old KMS key; so envelopes need not
// be touched when a key changes, however many there are.
//
// # Using it
//
// A [Client] needs a [Decrypter], which is a few lines around the KMS client
// that the service has already (this package imports no AWS SDK), and the
// broker's generated DataKeyServiceClient:
//
//	func (k kmsDecrypter) Decrypt(ctx context.Context, blob []byte, encryptionContext map[string]string, kmsKey string, grantTokens []string) ([]byte, error) {
//		out, err := k.Client.Decrypt(ctx, &kms.DecryptInput{
//			CiphertextBlob:    blob,
//			EncryptionContext: encryptionContext,
//			KeyId:             &kmsKey,
//			GrantTokens:       grantTokens,
//		})
//		if err != nil {
//			return nil, err
//		}
//		return out.Plaintext, nil
//	}
//
// Pass as associated data what the envelope belongs to, such as the tenant and
// the row's id: an envelope that is copied to another place then does not open
// there. Without it, Open opens every envelope whose data key the service may
// use, another tenant's included; [Inspect] tells which key an envelope names.
//
// # What is cached, and for how long
//
// Unwrapped data keys are kept for Config.PlaintextTTL and then overwritten:
// that long, the service goes on after its right was taken away, and after a
// data key was deleted. Wrapped keys are asked for again after half of
// Config.MaxReadDelay, which must not exceed what the broker announces: after
// that time it counts on nobody holding an old wrapping. If the broker does not
// answer (Unavailable, DeadlineExceeded), the wrapped key at hand is used on;
// every other answer counts. If KMS refuses a wrapped key that was at hand, it
// is asked for again, and the new one, if there is one, is tried once: this is
// how a service rides through a key change.
//
// # The envelope, version 1
//
//	size  what
//	   3  "kb", and the version: 0x01
//	   1  length of the name, 1 to 209
//	   n  name, "domains/{domain}/dataKeys/{data_key}"
//	   1  length of the uid, 1 to 64
//	   m  uid, of ASCII letters and digits
//	  32  salt, random
//	  12  nonce, random
//	   p  ciphertext, as long as the plaintext
//	  16  tag
//
// Everything before the nonce is the header. The AES-256 key of one envelope is
// HKDF-SHA256 (RFC 5869) of the data key, with the salt, and with the info
// "keybroker/client/v1/aes-256-gcm". GCM's additional data is the header,
// followed by the caller's associated data; since the header tells its own
// length, no two pairs of them are alike.
//
// Why a key for each envelope: NIST SP 800-38D, section 8.3, allows one key at
// most 2^32 messages with random 96-bit nonces, which one busy data key would
// exceed. With 256 bits of salt, two of 2^64 envelopes share a key with a
// probability of about 2^-129, so there is nothing to count.
//
// Later versions will go on opening envelopes of version 1.
package client
