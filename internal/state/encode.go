package state

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// Encode writes an entry's body: {"type":…,"v":…,"time":…,"body":{…}}. It is the only form that Decode takes.
func Encode(e *Entry) ([]byte, error) {
	k := e.Event.Kind()
	b := make([]byte, 0, 1024)
	b = append(b, `{"type":"`...)
	b = append(b, k.Type...)
	b = append(b, `","v":`...)
	b = strconv.AppendInt(b, int64(k.Version), 10)
	b = append(b, `,"time":`...)
	b = e.Time.append(b)
	b = append(b, `,"body":`...)
	if r, ok := e.Event.(*SecretReleased); ok {
		b = r.append(b)
	} else {
		body, err := json.Marshal(e.Event)
		if err != nil {
			return nil, fmt.Errorf("encoding %s: %w", k, err)
		}
		b = append(b, body...)
	}
	b = append(b, '}')
	if len(b) > MaxBody {
		return nil, problem.New(problem.ReasonTooLarge, "a %s entry of %d bytes is over the limit of %d", k, len(b), MaxBody)
	}
	if notUTF8(b) {
		// It would be read back as something else than was decided about.
		return nil, problem.New(problem.ReasonInvalid, "a %s entry has text that is not UTF-8", k)
	}
	return b, nil
}

// notUTF8 finds the escape that encoding/json puts in the place of a byte that is not UTF-8. It
// writes a real U+FFFD as it is.
func notUTF8(b []byte) bool {
	mark := []byte(`\ufffd`)
	for from := 0; ; {
		at := bytes.Index(b[from:], mark)
		if at < 0 {
			return false
		}
		at += from
		before := 0
		for before < at && b[at-1-before] == '\\' {
			before++
		}
		if before%2 == 0 {
			return true
		}
		from = at + len(mark)
	}
}

// append writes what json.Marshal would, at a tenth of its price: of all entries this is the one that
// every read waits for.
func (e *SecretReleased) append(b []byte) []byte {
	b = appendText(append(b, `{"secret":`...), e.Secret)
	b = strconv.AppendUint(append(b, `,"version":`...), e.Version, 10)
	b = e.Digest.append(append(b, `,"digest":`...))
	b = appendText(append(b, `,"purpose":`...), e.Purpose)
	b = appendText(append(b, `,"assurance":`...), e.Assurance)
	if e.Lease != 0 {
		b = strconv.AppendUint(append(b, `,"lease":`...), e.Lease, 10)
	}
	b = e.Expires.append(append(b, `,"expires":`...))
	if e.Max != 0 {
		b = e.Max.append(append(b, `,"max":`...))
	}
	if e.Anchor != "" {
		b = appendText(append(b, `,"anchor":`...), e.Anchor)
	}
	b = strconv.AppendUint(append(b, `,"root":`...), e.Root, 10)
	b = e.Actor.append(append(b, `,"actor":`...))
	b = e.Ruling.append(append(b, `,"ruling":`...))
	if k := e.Idem; k != nil {
		b = appendText(append(b, `,"idem":{"key":`...), k.Key)
		b = k.Request.append(append(b, `,"request":`...))
		if k.First != 0 {
			b = strconv.AppendUint(append(b, `,"first":`...), k.First, 10)
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

func (a Actor) append(b []byte) []byte {
	b = appendText(append(b, `{"identity":`...), a.Identity)
	if a.Node != "" {
		b = appendText(append(b, `,"node":`...), a.Node)
	}
	if a.Session != 0 {
		b = strconv.AppendUint(append(b, `,"session":`...), a.Session, 10)
	}
	return append(b, '}')
}

func (r Ruling) append(b []byte) []byte {
	b = strconv.AppendUint(append(b, `{"generation":`...), r.Generation, 10)
	b = r.Bundle.append(append(b, `,"bundle":`...))
	if r.Grant != "" {
		b = appendText(append(b, `,"grant":`...), r.Grant)
	}
	b = strconv.AppendInt(append(b, `,"evaluator":`...), int64(r.Evaluator), 10)
	if r.Cohort != "" {
		b = appendText(append(b, `,"cohort":`...), r.Cohort)
	}
	return append(b, '}')
}

func (d Digest) append(b []byte) []byte {
	b = append(append(b, '"'), digestPrefix...)
	return append(hex.AppendEncode(b, d[:]), '"')
}

func (m Millis) append(b []byte) []byte {
	t := time.UnixMilli(int64(m)).UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return append(t.AppendFormat(append(b, '"'), millisLayout), '"')
	}
	hour, minute, second := t.Clock()
	b = appendDigits(append(b, '"'), year, 4)
	b = appendDigits(append(b, '-'), int(month), 2)
	b = appendDigits(append(b, '-'), day, 2)
	b = appendDigits(append(b, 'T'), hour, 2)
	b = appendDigits(append(b, ':'), minute, 2)
	b = appendDigits(append(b, ':'), second, 2)
	b = appendDigits(append(b, '.'), t.Nanosecond()/int(time.Millisecond), 3)
	return append(b, 'Z', '"')
}

// appendDigits writes a number with leading zeros.
func appendDigits(b []byte, n, width int) []byte {
	for range width {
		b = append(b, '0')
	}
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

// appendText writes a JSON string. What needs an escape is left to encoding/json.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, _ := json.Marshal(s) // a string never fails
			return append(b, text...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
