package policy

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types"
)

func TestPrepareClaimsRefuses(t *testing.T) {
	deep := map[string]any{}
	for inner, i := deep, 0; i < MaxClaimDepth+1; i++ {
		next := map[string]any{}
		inner["d"] = next
		inner = next
	}
	for name, m := range map[string]map[string]any{
		"deep":     deep,
		"many":     {"l": make([]any, 0), "m": strings.Split(strings.Repeat("x,", MaxClaimValues), ",")},
		"long":     {"s": strings.Repeat("S3CRET", MaxClaimText)},
		"bytes":    {"l": slices.Repeat([]string{strings.Repeat("x", MaxClaimText)}, 9)},
		"not utf8": {"s": "\xff"},
		"name":     {"\xff": 1},
		"nan":      {"f": math.NaN()},
		"inf":      {"f": math.Inf(1)},
		"uint":     {"u": uint64(math.MaxUint64)},
		"number":   {"n": json.Number("1e999")},
		"type":     {"t": struct{}{}},
		"nil":      {"t": nil},
	} {
		if _, err := PrepareClaims(m); err == nil || strings.Contains(err.Error(), "S3CRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is written to the ledger as JSON and read back decides the same.
func TestClaimsSurviveJSON(t *testing.T) {
	m := map[string]any{
		"i": 7, "big": int64(1) << 52, "u": uint32(3), "f": 1.5, "whole": 2.0, "b": true, "s": "x",
		"l": []string{"a"}, "m": map[string]string{"k": "v"}, "n": map[string]any{"z": []any{1, "2", false}},
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	one, two := mustClaims(t, m), mustClaims(t, back)
	if one.values.Equal(two.values) != types.True {
		t.Errorf("%v and %v", one.values, two.values)
	}
	v, _ := one.values.Find(types.String("whole"))
	w, _ := two.values.Find(types.String("whole"))
	if reflect.TypeOf(v) != reflect.TypeOf(w) || v.Type() != types.IntType {
		t.Errorf("a whole number is %v before and %v after", v.Type(), w.Type())
	}
	// A copy was taken.
	m["s"] = "changed"
	if s, err := one.text([]string{"s"}); s != "x" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
}
