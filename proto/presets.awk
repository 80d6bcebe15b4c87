# SPDX-License-Identifier: Apache-2.0
# Turns the preset files given into a C table of their names and texts.
BEGIN {
	print "/* Made by proto/presets.awk from the files of etc. */"
	print "#include \"config.h\"\n#include \"proto/experiment.h\"\n"
	print "const struct experiment_preset experiment_presets[] = {"
}
FNR == 1 {
	name = FILENAME; sub(/.*\//, "", name); sub(/\.yaml$/, "", name)
	printf "%s\t{ \"%s\",\n", (NR > 1 ? "\t},\n" : ""), name
}
{
	gsub(/\\/, "\\\\"); gsub(/"/, "\\\"")
	printf "\t  \"%s\\n\"\n", $0
}
END { print "\t},\n\t{ NULL, NULL },\n};" }
