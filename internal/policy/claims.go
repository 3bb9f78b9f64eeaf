package policy

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// Limits of claims. The static cost of conditions is computed from them.
const (
	MaxClaimDepth  = 8
	MaxClaimValues = 1024  // scalars, lists and maps together
	MaxClaimText   = 8192  // bytes of one text or name
	MaxClaimBytes  = 65536 // of all texts and names together
	maxExactFloat  = 1 << 53
)

// Claims are what a verifier says about the holder of a session, prepared for conditions. They are
// prepared once per session, so that a decision converts nothing. They are immutable and safe for
// concurrent use; the zero Claims are none.
type Claims struct {
	values traits.Mapper
}

// noClaims is the prepared form of the zero Claims.
var noClaims = types.NewStringInterfaceMap(types.DefaultTypeAdapter, map[string]any{})

// PrepareClaims checks and converts claims: text, booleans, numbers, and lists and maps of them.
// A whole number is an integer however it was typed, so that claims mean the same before and after
// they were written as JSON. The map is copied. Errors name the claim and never its value.
func PrepareClaims(m map[string]any) (Claims, error) {
	var used claimUse
	v, err := prepare(m, 0, &used)
	if err != nil {
		return Claims{}, fmt.Errorf("claims%w", err)
	}
	return Claims{v.(traits.Mapper)}, nil
}

func (c Claims) mapper() traits.Mapper {
	if c.values == nil {
		return noClaims
	}
	return c.values
}

// text finds the claim at a path of keys and writes it as text, for a template. Only text and
// integers can become part of a name.
func (c Claims) text(keys []string) (string, error) {
	var v ref.Val = c.mapper()
	for _, key := range keys {
		m, ok := v.(traits.Mapper)
		if !ok {
			return "", fmt.Errorf("there is no claim %s", claimName(keys))
		}
		if v, ok = m.Find(types.String(key)); !ok {
			return "", fmt.Errorf("there is no claim %s", claimName(keys))
		}
	}
	switch v := v.(type) {
	case types.String:
		if v == "" {
			return "", fmt.Errorf("the claim %s is empty", claimName(keys))
		}
		return string(v), nil
	case types.Int:
		return strconv.FormatInt(int64(v), 10), nil
	}
	return "", fmt.Errorf("the claim %s is neither text nor an integer", claimName(keys))
}

func claimName(keys []string) string {
	name := "claims"
	for _, k := range keys {
		name += "." + k
	}
	return name
}

// claimUse counts what claims take.
type claimUse struct{ values, bytes int }

func (u *claimUse) text(s string) error {
	if len(s) > MaxClaimText || !utf8.ValidString(s) {
		return fmt.Errorf(": a text or name is longer than %d bytes or not UTF-8", MaxClaimText)
	}
	if u.bytes += len(s); u.bytes > MaxClaimBytes {
		return fmt.Errorf(" have more than %d bytes", MaxClaimBytes)
	}
	return nil
}

func prepare(v any, depth int, used *claimUse) (ref.Val, error) {
	if depth > MaxClaimDepth {
		return nil, fmt.Errorf(" are nested deeper than %d", MaxClaimDepth)
	}
	if used.values++; used.values > MaxClaimValues {
		return nil, fmt.Errorf(" have more than %d values", MaxClaimValues)
	}
	switch v := v.(type) {
	case string:
		if err := used.text(v); err != nil {
			return nil, err
		}
		return types.String(v), nil
	case bool:
		return types.Bool(v), nil
	case int:
		return types.Int(v), nil
	case int32:
		return types.Int(v), nil
	case int64:
		return types.Int(v), nil
	case uint32:
		return types.Int(v), nil
	case uint64:
		if v > math.MaxInt64 {
			return nil, fmt.Errorf(": a number is out of range")
		}
		return types.Int(v), nil
	case float64:
		return prepareFloat(v)
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return types.Int(i), nil
		}
		f, err := v.Float64()
		if err != nil {
			return nil, fmt.Errorf(": a number is out of range")
		}
		return prepareFloat(f)
	case []string:
		list := make([]any, len(v))
		for i := range v {
			list[i] = v[i]
		}
		return prepareList(list, depth, used)
	case []any:
		return prepareList(v, depth, used)
	case map[string]string:
		m := make(map[string]any, len(v))
		for k := range v {
			m[k] = v[k]
		}
		return prepareMap(m, depth, used)
	case map[string]any:
		return prepareMap(v, depth, used)
	}
	return nil, fmt.Errorf(": a value is of type %T", v)
}

func prepareFloat(f float64) (ref.Val, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, fmt.Errorf(": a number is not finite")
	}
	if f == math.Trunc(f) && math.Abs(f) < maxExactFloat {
		return types.Int(int64(f)), nil
	}
	return types.Double(f), nil
}

func prepareList(list []any, depth int, used *claimUse) (ref.Val, error) {
	out := make([]ref.Val, len(list))
	for i := range list {
		v, err := prepare(list[i], depth+1, used)
		if err != nil {
			return nil, fmt.Errorf("[%d]%w", i, err)
		}
		out[i] = v
	}
	return types.NewRefValList(types.DefaultTypeAdapter, out), nil
}

func prepareMap(m map[string]any, depth int, used *claimUse) (ref.Val, error) {
	out := make(map[string]any, len(m))
	for k, value := range m {
		if err := used.text(k); err != nil {
			return nil, err
		}
		v, err := prepare(value, depth+1, used)
		if err != nil {
			return nil, fmt.Errorf(".%.64s%w", k, err)
		}
		out[k] = v
	}
	return types.NewStringInterfaceMap(types.DefaultTypeAdapter, out), nil
}
