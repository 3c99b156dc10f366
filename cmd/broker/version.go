package main

import (
	"runtime/debug"
	"strings"
)

// build is what the compiler noted.
type build struct{ version, revision, goVersion string }

func readBuild() build {
	b := build{version: "(unknown)", revision: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.version, b.goVersion = info.Main.Version, info.GoVersion
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			b.revision += "+changes"
		}
	}
	return b
}

func versionLine() string {
	b := readBuild()
	return strings.Join([]string{"keybroker", b.version, b.revision, b.goVersion}, " ")
}
