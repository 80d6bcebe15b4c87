# SPDX-License-Identifier: Apache-2.0
# The rules of STYLE.md a machine can check, over the files given. Prints one line a breach.
# Columns count a tab as up to the next multiple of 8, and a UTF-8 character as one.

function width(s,    w, i, c) {
	w = 0
	for (i = 1; i <= length(s); i++) {
		c = substr(s, i, 1)
		w = c == "\t" ? w + 8 - w % 8 : w + 1
	}
	return w
}

# A folder may include itself and what its row of ARCHITECTURE.md names.
function may_include(from, to) {
	return from == to || to == "config.h" || index(" " allowed[from] " ", " " to " ")
}

BEGIN {
	allowed["lib"] = ""
	allowed["proto"] = "lib"
	allowed["store"] = "proto lib"
	allowed["client"] = "proto lib"
	allowed["daemon"] = "proto store lib"
	allowed["kernels"] = "lib"
	allowed["model"] = "kernels lib"
	allowed["worker"] = "proto store model kernels lib"
	allowed["tools"] = "lib kernels"
	allowed["tests"] = "client daemon worker model kernels store proto lib tools"
}

FNR == 1 {
	folder = FILENAME; sub(/^.*\.\.\//, "", folder); sub(/\/.*/, "", folder)
	in_function = 0
	if (FILENAME !~ /\.def$/ && $0 !~ /SPDX-License-Identifier: Apache-2.0/ && $0 !~ /^#!/)
		print FILENAME ": no SPDX line"
	lines_max = FILENAME ~ /\.cuh?$/ ? 1000 : 800
}

FNR == lines_max + 1 { print FILENAME ": more than " lines_max " lines" }

FILENAME !~ /\.def$/ && width($0) > 100 { print FILENAME ":" FNR ": " width($0) " columns" }

/^#[ \t]*include "/ {
	to = $0; sub(/^[^"]*"/, "", to); sub(/".*/, "", to)
	if (to !~ /\//)
		to = to == "config.h" ? to : "?" to
	sub(/\/.*/, "", to)
	if (!may_include(folder, to))
		print FILENAME ":" FNR ": " folder "/ may not include " $0
}

# A function starts at a line-initial '{' (or one that ends a line-initial signature) and ends at '}'.
/^[A-Za-z_].*\(/ { signature = FNR }
/^\{/ && !in_function { in_function = 1; start = signature ? signature : FNR }
/^[A-Za-z_].*\) *\{$/ && !/^(struct|enum|union|static const|extern)/ { in_function = 1; start = FNR }
/^\}/ {
	if (in_function && FNR - start + 1 > 70)
		print FILENAME ":" start ": function of " FNR - start + 1 " lines"
	in_function = 0
}
