package rotation

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/keybroker/keybroker/internal/broker"
)

// leafHash commits to one moved row: each field is prefixed by its length, so
// that no two rows share bytes. The 0x00 prefix keeps leaves apart from nodes
// (RFC 6962, section 2.1).
func leafHash(m Move, target broker.Epoch) [sha256.Size]byte {
	blob := sha256.Sum256(m.Ciphertext)
	b := []byte{0x00}
	for _, field := range [][]byte{[]byte(m.ID), []byte(m.UID), blob[:], []byte(m.KeyMaterialID)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(m.Version+1))
	b = binary.BigEndian.AppendUint64(b, uint64(target))
	return sha256.Sum256(b)
}

// merkleRoot is RFC 6962's Merkle tree hash over leaves that are hashed already.
func merkleRoot(leaves [][sha256.Size]byte) [sha256.Size]byte {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, right := merkleRoot(leaves[:k]), merkleRoot(leaves[k:])
	node := make([]byte, 0, 1+2*sha256.Size)
	node = append(node, 0x01)
	node = append(node, left[:]...)
	node = append(node, right[:]...)
	return sha256.Sum256(node)
}
