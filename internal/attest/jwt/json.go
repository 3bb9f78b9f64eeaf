package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// object reads one JSON object in the one way that it can be read (RFC 7519 §4 leaves duplicate names open):
// I-JSON (RFC 7493) without duplicate names at any depth, valid UTF-8, nothing behind it.
func object(text []byte) (map[string]any, error) {
	d := decoder{Decoder: jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))}
	if d.PeekKind() != '{' {
		return nil, invalid("a part of the token is not a JSON object")
	}
	value, err := d.value()
	if errors.Is(err, errTooMuch) {
		return nil, invalid("the token holds more than %d values, or they are nested more than %d deep", maxValues, maxDepth)
	}
	if err != nil {
		return nil, invalid("a part of the token is not one JSON object without duplicate members")
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return nil, invalid("something follows the JSON of the token")
	}
	return value.(map[string]any), nil
}

var errTooMuch = errors.New("too much")

type decoder struct {
	*jsontext.Decoder
	values int
}

// value reads the next value. It recurses no deeper than maxDepth.
func (d *decoder) value() (any, error) {
	if d.values++; d.values > maxValues || d.StackDepth() > maxDepth {
		return nil, errTooMuch
	}
	token, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch token.Kind() {
	case '{':
		return d.members()
	case '[':
		return d.elements()
	case '"':
		return token.String(), nil
	case '0':
		return json.Number(token.String()), nil
	case 't', 'f':
		return token.Bool(), nil
	}
	return nil, nil
}

func (d *decoder) members() (any, error) {
	out := map[string]any{}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		if out[key], err = d.value(); err != nil {
			return nil, err
		}
	}
	_, err := d.ReadToken()
	return out, err
}

func (d *decoder) elements() (any, error) {
	out := []any{}
	for d.PeekKind() != ']' {
		element, err := d.value()
		if err != nil {
			return nil, err
		}
		out = append(out, element)
	}
	_, err := d.ReadToken()
	return out, err
}
