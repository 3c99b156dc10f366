package sqlstore

import (
	"encoding/json"
	"errors"
	"math"
	"time"
)

// micros is the stored form of a time: microseconds since 1970 UTC, rounded
// down; 0 is the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// fromMicros is its inverse.
func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// at scans a stored time.
type at struct{ into *time.Time }

// Scan implements sql.Scanner.
func (a at) Scan(src any) error {
	us, ok := src.(int64)
	if !ok {
		return errors.New("a stored time is not a number")
	}
	*a.into = fromMicros(us)
	return nil
}

func scanTime(r row) (v time.Time, err error) {
	err = r.Scan(at{&v})
	return v, err
}

// toThousandths is the stored form of a rate.
func toThousandths(v float64) int64 { return int64(math.Round(v * 1000)) }

// thousandths scans it.
type thousandths struct{ into *float64 }

// Scan implements sql.Scanner.
func (s thousandths) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return errors.New("a stored rate is not a number")
	}
	*s.into = float64(n) / 1000
	return nil
}

// mapText is the stored form of a map: JSON with sorted keys. A nil map and an
// empty one stay different: a constraint "equals nothing but the reserved pair"
// is not "no constraint".
func mapText[M ~map[string]string](m M) string {
	if m == nil {
		return "null"
	}
	if len(m) == 0 {
		return "{}"
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // a map of strings always marshals
	}
	return string(text)
}

// listText is the stored form of a list; nil and empty are both [].
func listText(list []string) string {
	if len(list) == 0 {
		return "[]"
	}
	text, err := json.Marshal(list)
	if err != nil {
		panic(err) // a list of strings always marshals
	}
	return string(text)
}

// jsonText scans what mapText and listText wrote.
type jsonText[T any] struct{ into *T }

func fromJSON[T any](into *T) jsonText[T] { return jsonText[T]{into} }

// Scan implements sql.Scanner. The error leaves the text out.
func (j jsonText[T]) Scan(src any) error {
	var text []byte
	switch s := src.(type) {
	case string:
		text = []byte(s)
	case []byte:
		text = s
	}
	switch string(text) {
	case "null", "[]":
		return nil
	}
	if json.Unmarshal(text, j.into) != nil {
		return errors.New("a stored list or map is not JSON")
	}
	return nil
}
