package grpcapi_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// constantsOf gives the values of the string constants of a type, read from a
// package's sources: a test that walks them cannot forget a new one.
func constantsOf(t *testing.T, dir, typeName string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s (%v)", dir, err)
	}
	values := map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			previous := "" // a constant without a type of its own
			for _, spec := range group.Specs {
				s := spec.(*ast.ValueSpec)
				if id, ok := s.Type.(*ast.Ident); ok {
					previous = id.Name
				} else if len(s.Values) > 0 {
					previous = conversionOf(s.Values[0])
				}
				if previous != typeName {
					continue
				}
				for _, v := range s.Values {
					if call, ok := v.(*ast.CallExpr); ok {
						v = call.Args[0]
					}
					text, err := strconv.Unquote(v.(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					values[text] = true
				}
			}
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s: no constants of type %s", dir, typeName)
	}
	return slices.Sorted(maps.Keys(values))
}

// conversionOf gives T of an expression T("…").
func conversionOf(e ast.Expr) string {
	if call, ok := e.(*ast.CallExpr); ok {
		if id, ok := call.Fun.(*ast.Ident); ok {
			return id.Name
		}
	}
	return ""
}
