package localkms

import (
	"encoding/base64"
	"strings"
)

func pageSize(limit *int, otherwise int) int {
	if limit == nil {
		return otherwise
	}
	return *limit
}

// A marker is opaque to callers: base64 of where the next page begins.

func writeMarker(position string) string {
	return base64.URLEncoding.EncodeToString([]byte("m1:" + position))
}

// readMarker returns the position in a marker, "" without one.
func readMarker(marker *string) (string, error) {
	if marker == nil {
		return "", nil
	}
	decoded, err := base64.URLEncoding.DecodeString(*marker)
	position, ok := strings.CutPrefix(string(decoded), "m1:")
	if err != nil || !ok || position == "" {
		return "", errInvalidMarker()
	}
	return position, nil
}

func errInvalidMarker() error {
	return fault(codeInvalidMarker, "The request was rejected because the marker that specifies where pagination should next begin is not valid.")
}
