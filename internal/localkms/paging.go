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

// A marker is opaque to callers: base64 of the operation that it belongs to and of
// where the next page begins.

func (r *request) writeMarker(position string) string {
	return base64.URLEncoding.EncodeToString([]byte(r.markerPrefix() + position))
}

func (r *request) markerPrefix() string { return "m1:" + r.call.Operation + ":" }

// readMarker returns the position in a marker, "" without one.
func (r *request) readMarker(marker *string) (string, error) {
	if marker == nil {
		return "", nil
	}
	decoded, err := base64.URLEncoding.DecodeString(*marker)
	position, ok := strings.CutPrefix(string(decoded), r.markerPrefix())
	if err != nil || !ok || position == "" {
		return "", errInvalidMarker()
	}
	return position, nil
}

func errInvalidMarker() error {
	return fault(codeInvalidMarker, "The request was rejected because the marker that specifies where pagination should next begin is not valid.")
}
